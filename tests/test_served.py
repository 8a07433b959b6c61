"""A widget behind a small server: who may ask, what is answered, what a page hears of changes, and that nothing is left behind."""
import json
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from synseg_kit.atlas import Atlas, AtlasWord, pack, quantise, unpack
from synseg_kit.explorer import Explorer, View, explore
from synseg_kit.served import LONGEST, Served, refusal


def made_up(text='a cat'):
    """An explorer of random maps, with one part."""
    words = text.split()
    rng = np.random.default_rng(0)
    explorer = explore(Atlas(rng.integers(0, 256, (24, 32, 3), np.uint8), text, [AtlasWord(word) for word in words], quantise(rng.random((len(words), 3, 6, 8), np.float32)), range(3), 3))
    explorer.parts['self'] = lambda: pack({'part': 'self'}, {'self': np.arange(9, dtype=np.uint8)})
    return explorer


@pytest.fixture
def served():
    with Served(made_up()) as one: yield one


def ask(served, path, content=None, data=None, method='POST', **headers):
    """Ask as a page does; headers of None are left out."""
    sent = {'Content-Type': 'application/json', 'Authorization': f'token {served.token}'} | {name.replace('_', '-'): value for name, value in headers.items()}
    request = urllib.request.Request(f'http://127.0.0.1:{served.port}{path}', json.dumps(content).encode() if data is None else data, {name: value for name, value in sent.items() if value is not None}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer: return unpack(answer.read())


@pytest.mark.parametrize(('path', 'headers', 'status'), [
    ('/values', {'Authorization': None}, 403), ('/values', {'Authorization': 'token guessed'}, 403), ('/ask', {'Host': 'evil.example'}, 403), ('/ask', {'Host': '127.0.0.1'}, 403),
    ('/ask', {'Content_Type': 'text/plain'}, 415), ('/view', {'Content_Type': 'application/x-www-form-urlencoded'}, 415), ('/secrets', {}, 404), ('/values?token=x', {}, 404)])
def test_who_may_not_ask_gets_nothing(served, path, headers, status):
    with pytest.raises(urllib.error.HTTPError) as error: ask(served, path, {'since': 0}, **headers)
    assert error.value.code == status and served.token not in error.value.read().decode()


@pytest.mark.parametrize(('query', 'status'), [('', 403), ('?token=', 403), ('?token=none', 403), ('?token=guessed', 403)])
def test_the_page_is_for_who_has_the_token(served, query, status):
    with pytest.raises(urllib.error.HTTPError) as error: urllib.request.urlopen(f'http://127.0.0.1:{served.port}/{query}', timeout=30)
    assert error.value.code == status


def test_the_page_holds_no_token_and_fetches_from_here_alone(served):
    with urllib.request.urlopen(served.url, timeout=30) as answer: text, headers = answer.read().decode(), answer.headers
    assert served.token not in text and "default-src 'none'" in text and "connect-src 'self'" in text and 'class ServedModel' in text and 'class PageModel' not in text
    assert headers['Cache-Control'] == 'no-store' and headers['Content-Security-Policy'] == "frame-ancestors 'none'" and headers['Referrer-Policy'] == 'no-referrer'


def test_nobody_else_reaches_it(served):
    assert served.server.server_address[0] == '127.0.0.1'
    assert refusal({'Host': f'127.0.0.1:{served.port}', 'Authorization': f'token {served.token}', 'Content-Type': 'application/json', 'Content-Length': str(LONGEST + 1)}, served.port, served.token)[0] == 413
    with Served(made_up()) as other: assert other.token != served.token and other.port != served.port


@pytest.mark.parametrize(('path', 'data', 'message'), [('/ask', b'{', 'no JSON'), ('/values', b'{}', 'KeyError'), ('/values', b'{"since": "x"}', 'ValueError'), ('/view', b'{"view": 3}', 'TypeError')])
def test_nonsense_is_answered_and_the_server_lives(served, path, data, message):
    with pytest.raises(urllib.error.HTTPError) as error: ask(served, path, data=data)
    assert error.value.code == 400 and message in error.value.read().decode()
    assert ask(served, '/values', {'since': 0})[0]['version'] == served.version


def test_a_page_gets_all_and_then_what_changes(served):
    about, tensors = ask(served, '/values', {'since': 0})
    assert tensors['atlas'].tobytes() == served.widget.atlas and about['values'].keys() == {'offers', 'view', 'asking', 'status'} and about['empty'] == ['beside']
    heard = []
    waiting = threading.Thread(target=lambda: heard.append(ask(served, '/values', {'since': about['version']})))
    waiting.start()
    served.widget.status = {'busy': True}
    waiting.join(30)
    assert heard[0][0]['values'] == {'status': {'busy': True}} and heard[0][0]['version'] > about['version'] and not heard[0][0]['binary']
    other = made_up('a dog on grass').shown
    served.widget.present(other, {'self': lambda: b''})
    about, tensors = ask(served, '/values', {'since': heard[0][0]['version']})
    assert tensors['atlas'].tobytes() == other.to_bytes() and about['values']['offers'] == ['self', 'page']


def test_patience_has_an_end(served):
    about, _ = unpack(served.values(served.version, .01))
    assert about == {'version': served.version, 'binary': [], 'empty': [], 'values': {}}


def test_what_a_page_looks_at_is_known_and_not_echoed(served):
    before = served.version
    ask(served, '/view', {'view': View([1], (0, 1)).to_json()})
    assert served.widget.view['words'] == [1] and served.version == before
    served.widget.view = View([0]).to_json()
    assert served.version == before + 1


def test_questions_are_answered_as_in_a_notebook(served):
    about, tensors = ask(served, '/ask', {'ask': 'self'})
    (one,) = about['messages']
    assert one['message'] == {'part': 'self'} and tensors[one['buffers'][0]].tobytes() == served.widget.part('self')
    about, tensors = ask(served, '/ask', {'ask': 'page'})
    assert about['messages'][0]['message']['file'] == 'explorer.html' and tensors['0.0'].tobytes().startswith(b'<!doctype html>')
    about, _ = ask(served, '/ask', {'ask': 'stars'})
    assert "there is no 'stars' to be had" in about['messages'][0]['message']['error']


def test_afterwards_the_widget_is_as_it_was():
    explorer = made_up()
    with Served(explorer) as served: address = served.server.server_address
    assert explorer.send == Explorer.send.__get__(explorer)
    explorer.status = {'text': 'alone'}
    assert served.version == 1
    with socket.socket() as probe: assert probe.connect_ex(address) != 0


def test_a_taken_port_is_told():
    with Served(made_up()) as served, pytest.raises(OSError, match='in use'): Served(made_up(), served.port)
