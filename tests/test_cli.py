"""The command line: help that teaches, errors on one line, and the whole line in four commands."""
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial

import farm
import nbformat
import pytest
from tiny import tiny_pipeline

from synseg_kit import cli
from synseg_kit.toyworld import shipped

COMMANDS = ('generate', 'train', 'evaluate', 'predict', 'relabel', 'export', 'render', 'run', 'sweep', 'results', 'words', 'explore', 'lab', 'check', 'pack', 'unpack', 'merge', 'split', 'statistics')


def synseg(*arguments, folder=None):
    """Run the command line in a process of its own."""
    command = [sys.executable, '-c', 'import sys; from synseg_kit.cli import main; sys.exit(main())', *map(str, arguments)]
    environment = {**os.environ, 'COLUMNS': '80', 'HF_HUB_OFFLINE': '1'}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL)


def error_line(capsys, *arguments):
    """Run the command line in this process; return its one line of complaint."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    complaints = [line for line in said.err.split('\n') if line and not line.startswith('\r')]  # progress bars begin with a return
    assert status == 2 and said.out == '' and len(complaints) == 1 and complaints[0].startswith('synseg'), said
    return complaints[0]


@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_each_command_has_examples(capsys, command):
    with pytest.raises(SystemExit) as stop: cli.main([command, '--help'])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and f'synseg {command}' in said and 'examples:' in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize('command', COMMANDS)
def test_examples_in_the_help_are_commands_that_parse(capsys, command):
    with pytest.raises(SystemExit): cli.main([command, '--help'])
    text = re.sub(r'\s*\\\n\s*', ' ', capsys.readouterr().out.partition('examples:')[2])
    examples = [line.split('   ')[0].split(' > ')[0] for line in text.splitlines() if line.startswith('  synseg ')]
    assert examples
    for example in examples:
        options = [word for word in example.split() if word.startswith('-')]
        parsed = cli.build_parser().parse_args(shlex.split(example)[1:])
        assert callable(parsed.command), options


def test_help_answers_within_a_second():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = synseg('--help')
        times.append(time.perf_counter() - start)
    assert done.returncode == 0 and all(command in done.stdout for command in COMMANDS)
    assert min(times) < 1, times


def test_help_imports_nothing_heavy():
    code = ('import sys, synseg_kit.cli as c; c.build_parser().format_help(); '
            'sys.exit(bool({"torch", "numpy", "diffusers", "papermill"} & set(sys.modules)))')
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_version(capsys):
    with pytest.raises(SystemExit): cli.main(['--version'])
    assert re.fullmatch(r'synseg_kit \d+\.\d+\.\d+\n', capsys.readouterr().out)


@pytest.mark.parametrize(('arguments', 'says'), [
    ((), 'the following arguments are required: COMMAND'),
    (('gnerate',), "invalid choice: 'gnerate'"),
    (('generate',), 'the following arguments are required: --out'),
    (('generate', '--out', 'x', '--objects', '3-1'), "'3-1' is neither a number nor a range"),
    (('generate', '--out', 'x', '--count', '0'), "'0' is not a whole number from 1 on"),
    (('generate', '--out', 'x', '--block-size', 'all'), "'all' is not a whole number from 1 on"),
    (('generate', '--out', 'x', '--classes', 'vok'), "unknown class set 'vok'"),
    (('generate', '--out', 'x', '--classes', 'voc'), 'name one with --model'),
    (('generate', '--out', 'x', '--prompts', 'missing.txt'), 'there is no file missing.txt'),
    (('generate', '--out', 'x', '--model', './missing'), 'missing'),
    (('train', '--out', 'x', '--data', 'missing'), 'missing'),
    (('train', '--out', 'x', '--data', 'd', '--objective', 'cotraining'), "invalid choice: 'cotraining'"),
    (('generate', '--out', 'x', '--prompts', str(shipped('toy-sd') / 'model_index.json')), 'needed is COCO'),
    (('evaluate', '--model', 'missing', '--data', 'missing'), 'missing is not a saved segmenter'),
    (('evaluate', '--model', 'm', '--data', 'd', '--protocol', 'coco'), "invalid choice: 'coco'"),
    (('evaluate', '--model', 'm', '--data', 'd', '--scales', '1,x'), "'1,x' is not a list of magnifications such as 0.75,1,1.25"),
    (('evaluate', '--model', 'm', '--data', 'd', '--window', '12x'), "'12x' is neither a number of pixels nor height x width"),
    (('evaluate', '--model', 'm', '--data', 'd', '--stride', '8'), 'needed is a window as well'),
    (('predict', 'missing', 'images'), 'the following arguments are required: --out'),
    (('predict', 'missing', 'images', '--out', 'x'), 'there is no file or folder images'),
    (('predict', 'missing', str(shipped('toy-sd').parent), '--out', 'x'), 'holds no images'),
    (('relabel', 'data', 'model', '--out', 'x', '--weight', '2'), "'2' is not a number from 0 to 1"),
    (('relabel', 'missing', 'model', '--out', 'x'), 'missing is not a synthetic dataset'),
    (('export', 'missing', '--onnx', 'x.onnx'), 'missing is not a saved segmenter'),
    (('export', 'run/missing', '--onnx', 'x.onnx'), 'run/missing is neither a folder nor a segmenter on the hub'),
    (('export', str(shipped('toy-oracle/objects')), '--onnx', 'x.pt'), 'x.pt should end in .onnx'),
    (('render', '--out', 'x', '--layout', 'imagenet-s', '--look', 'streets'), 'imagenet-s shows objects'),
    (('run', 'missing.ipynb'), 'there is no notebook missing.ipynb'),
    (('run', 'quikstart'), 'did you mean quickstart?'),
    (('run', 'quickstart', '-p', 'seed'), "'seed' is not of the form name=value"),
    (('run', 'quickstart', '-f', 'missing.yaml'), 'there is no file missing.yaml'),
    (('sweep', 'quickstart', '--grid', 'sed=1,2'), "has no parameter 'sed': did you mean seed?"),
    (('sweep', 'quickstart', '--grid', 'images=1,many'), "images is int, got 'many'"),
    (('sweep', 'quickstart', '--seeds', '3-1'), "'3-1' is not a list of seeds such as 0,1,2 or 0-4"),
    (('results', '--folder', 'missing'), 'there is no folder missing'),
    (('check', 'missing'), 'missing holds neither a synthetic dataset (dataset.json) nor shards'),
    (('check', 'missing', '--classes', 'voc', '--mend'), '--mend and --seal are for synthetic datasets'),
    (('pack', 'missing', '--out', 'x'), 'missing is not a synthetic dataset'),
    (('pack', 'missing', '--classes', 'voc', '--out', 'x'), 'missing is not a VOC dataset'),
    (('unpack', 'missing', '--out', 'x'), 'missing holds no shards: it has no manifest.json'),
    (('merge', 'missing', '--out', 'x'), 'merging needs at least two datasets; got 1'),
    (('split', 'missing', 'fit=0.9', 'held=much'), "'much' is not a share such as 0.8"),
    (('split', 'missing', 'fit=0.5', 'fit=0.5'), 'a part is named twice'),
    (('statistics', 'missing'), 'missing is not a synthetic dataset'),
    (('results', 'missing'), 'there is no folder missing'),
    (('results', '--diff', 'missing', 'missing'), 'missing'),
])
def test_errors_are_one_line_and_write_nothing(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in error_line(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_errors_come_from_a_process_as_from_a_call(tmp_path):
    done = synseg('generate', '--out', 'x', '--prompts', 'missing.txt', folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'synseg: error: there is no file missing.txt\n')


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError): cli.main(['generate', '--out', 'x', '--prompts', 'missing.txt', '--debug'])


def test_defaults_are_those_of_the_library_and_the_help_names_them(capsys):
    from synseg_kit.training import SegmenterSettings
    parsed, settings = cli.build_parser().parse_args(['train', '--data', 'd', '--out', 'o']), SegmenterSettings()
    for name in ('architecture', 'encoder', 'encoder_weights', 'steps', 'batch_size', 'learning_rate', 'precision', 'seed'):
        assert getattr(parsed, name) == getattr(settings, name), name
    assert parsed.crop == settings.augmentation.crop
    with pytest.raises(SystemExit): cli.main(['train', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for value in (settings.architecture, settings.encoder, settings.steps, settings.batch_size, settings.learning_rate, settings.augmentation.crop):
        assert f'(default: {value})' in text


def test_objectives_are_those_of_the_library_and_the_help_explains_each(capsys):
    from synseg_kit.robust import OBJECTIVES
    assert cli.OBJECTIVES == tuple(OBJECTIVES)
    with pytest.raises(SystemExit): cli.main(['train', '--help'])
    text = capsys.readouterr().out.rpartition('--objective NAME')[2].partition('--steps')[0]
    assert all(name in text for name in OBJECTIVES) and text.rstrip().endswith('plain)')


def test_an_error_nobody_foresaw_is_named(capsys, monkeypatch):
    def broken(arguments): raise KeyError('x')
    monkeypatch.setattr(cli, 'results', broken)
    assert "KeyError: 'x' (--debug shows where)" in error_line(capsys, 'results')


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    def interrupted(arguments): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'results', interrupted)
    assert cli.main(['results']) == 130 and 'interrupted' in capsys.readouterr().err


def test_a_caption_file_without_classes_is_refused(capsys, tmp_path):
    (tmp_path / 'captions.txt').write_text('Heavy rain at night.\n')
    assert "names a class of 'toy'" in error_line(capsys, 'generate', '--out', tmp_path / 'x', '--prompts', tmp_path / 'captions.txt')
    assert not (tmp_path / 'x').exists()


@pytest.fixture
def job(tmp_path):
    """A run notebook that adds two numbers."""
    path = tmp_path / 'add.ipynb'
    work = f"""from synseg_kit.runs import parameters_of, write_result
write_result(out, parameters_of({str(path)!r}, globals()), {{'total': a + b}}, 0, 0.1)"""
    cells = [nbformat.v4.new_code_cell("out: str = 'out'\na: int = 1  # the first\nb: float = 2.0  # the second", metadata={'tags': ['parameters']}),
             nbformat.v4.new_code_cell('SETS = dict(small=dict(a=10))', metadata={'tags': ['sets']}), nbformat.v4.new_code_cell(work)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_run_takes_the_small_set_and_changes(job, tmp_path, capsys):
    assert cli.main(['run', str(job), '-p', 'b=0.5', '--out', str(tmp_path / 'out')]) == 0
    assert 'add (small) took' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out/result.json').read_text())['metrics'] == {'total': 10.5}


def test_run_lists_what_a_notebook_takes(job, capsys):
    assert cli.main(['run', str(job), '--help-notebook']) == 0
    assert capsys.readouterr().out.splitlines() == ['parameter  type   smoke  small  meaning', 'a          int    1      10     the first',
                                                    'b          float  2.0    2.0    the second']


def test_run_refuses_parameters_before_anything_runs(job, capsys, tmp_path):
    for change, says in (('c=1', "has no parameter 'c'"), ('a=x', "parameter a is int, got 'x'")):
        assert says in error_line(capsys, 'run', job, '-p', change, '--out', tmp_path / 'out')
    assert "has no set 'huge': it has smoke, small" in error_line(capsys, 'run', job, '--set', 'huge', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_run_without_a_name_lists_what_is_shipped(capsys):
    assert cli.main(['run']) == 0
    assert 'quickstart' in capsys.readouterr().out


def test_results_lists_and_finds_the_stale(tmp_path, capsys):
    from synseg_kit.runs import source_hash, write_bench
    write_bench('fresh', [{'miou': 0.5}], ['cli'], tmp_path)
    path = write_bench('old', [{'miou': 0.25}], ['cli'], tmp_path)
    path.write_text(path.read_text().replace(source_hash(['cli']), '0' * 64))
    assert cli.main(['results', '--stale', '--folder', str(tmp_path)]) == 0
    assert capsys.readouterr().out == 'old\n'
    assert cli.main(['results', '--folder', str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and 'miou 0.500' in lines[1] and 'stale' in lines[2]


@pytest.fixture(scope='module')
def line(tmp_path_factory):
    """The whole line at its smallest: a pipeline of random weights, a dataset, a segmenter, real images."""
    folder = tmp_path_factory.mktemp('line')
    tiny_pipeline().save_pretrained(folder / 'pipeline')
    (folder / 'captions.txt').write_text('a cat and a ball\nheavy rain\na ball on the grass\n')
    status = [cli.main([*generate(folder), '--steps', '2']),
              cli.main(['train', '--data', str(folder / 'data'), '--out', str(folder / 'segmenter'), '--encoder', 'resnet18', '--steps', '2',
                        '--batch-size', '2', '--crop', '64', '--device', 'cpu']),
              cli.main(['render', '--out', str(folder / 'real'), '--count', '3'])]
    assert status == [0, 0, 0]
    return folder


def generate(folder):
    """The arguments that make four images from the captions."""
    return ['generate', '--model', str(folder / 'pipeline'), '--prompts', str(folder / 'captions.txt'), '--out', str(folder / 'data'),
            '--count', '4', '--block-size', '2', '--device', 'cpu']


def test_the_line_leaves_what_it_says(line):
    assert len(list((line / 'data/JPEGImages').iterdir())) == 4
    assert (line / 'segmenter/model.safetensors').is_file() and (line / 'segmenter/segmenter.json').is_file()
    assert len(list((line / 'real').rglob('SegmentationClass/*.png'))) == 3


def test_train_takes_an_objective_by_name(line, tmp_path):
    arguments = ['train', '--data', str(line / 'data'), '--encoder', 'resnet18', '--steps', '1', '--batch-size', '2', '--crop', '32', '--device', 'cpu']
    assert cli.main([*arguments, '--objective', 'co_training', '--out', str(tmp_path / 'pair')]) == 0
    about = json.loads((tmp_path / 'pair/segmenter.json').read_text())
    assert about['networks'] == 2 and about['objective'].startswith('CoTraining(')
    assert json.loads((line / 'segmenter/segmenter.json').read_text())['objective'] == 'Plain()'


def test_captions_are_read_in_every_form_and_what_is_left_out_is_counted(line, tmp_path, capsys):
    texts = ['a cat and a ball', 'heavy rain', 'a ball on the grass', 'A cat and a  ball']
    (tmp_path / 'lines.jsonl').write_text(''.join(json.dumps({'caption': text, 'file': 'x.jpg'}) + '\n' for text in texts))
    (tmp_path / 'coco.json').write_text(json.dumps({'images': [], 'annotations': [{'id': n, 'image_id': 7, 'caption': text} for n, text in enumerate(texts)]}))
    for form in ('lines.jsonl', 'coco.json'):
        capsys.readouterr()
        out = tmp_path / form.split('.')[0]
        arguments = generate(line)
        arguments[arguments.index('--prompts') + 1], arguments[arguments.index('--out') + 1], arguments[arguments.index('--count') + 1] = str(tmp_path / form), str(out), '2'
        assert cli.main([*arguments, '--steps', '2']) == 0
        said = capsys.readouterr().out.splitlines()
        assert said == [f'2 images with pseudo-masks in {out}', '3 mentions of 2 classes in 2 prompts from 4 captions; left out: 1 there already, 1 without a class word']
        assert [json.loads(one)['text'] for one in (out / 'metadata.jsonl').read_text().splitlines()] == ['a cat and a ball', 'a ball on the grass']


def test_captions_are_used_in_order_and_again(line):
    lines = [json.loads(text) for text in (line / 'data/metadata.jsonl').read_text().splitlines()]
    assert [one['text'] for one in lines] == ['a cat and a ball', 'a ball on the grass'] * 2


def test_generate_goes_on_without_a_change(line, capsys):
    before = {path: path.stat().st_mtime_ns for path in (line / 'data').rglob('*.jpg')}
    assert cli.main([*generate(line), '--steps', '2']) == 0
    assert '4 images with pseudo-masks' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (line / 'data').rglob('*.jpg')}


def test_the_line_ends_in_a_score(line, capsys):
    arguments = ['evaluate', '--model', str(line / 'segmenter'), '--data', str(line / 'real'), '--device', 'cpu']
    assert cli.main(arguments) == 0
    assert re.search(r'^mIoU +0\.\d{3}$', capsys.readouterr().out, re.M)
    assert cli.main([*arguments, '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['images'] == 3 and 0 <= figures['miou'] <= 1 and figures['protocol'] == 'voc'


@pytest.mark.parametrize(('protocol', 'look', 'layout', 'figures'), [('voc', 'objects', 'voc', ()), ('imagenet-s', 'objects', 'imagenet-s', ('image_accuracy', 'boundary_miou')),
                                                                      ('cityscapes', 'streets', 'cityscapes', ('category_miou', 'iou_vehicle'))])
def test_a_score_comes_with_its_interval_its_figures_and_the_servers_files(tmp_path, capsys, protocol, look, layout, figures):
    assert cli.main(['render', '--look', look, '--layout', layout, '--count', '3', '--out', str(tmp_path / 'real')]) == 0
    arguments = ['evaluate', '--model', str(shipped(f'toy-oracle/{look}')), '--data', str(tmp_path / 'real'), '--protocol', protocol, '--device', 'cpu']
    capsys.readouterr()
    assert cli.main([*arguments, '--json', '--save-to', str(tmp_path / 'said')]) == 0
    values = json.loads(capsys.readouterr().out)
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert re.search(rf'^90 % interval +{values["miou_interval"][0]:.3f} to {values["miou_interval"][1]:.3f}$', text, re.M)
    for name in figures:
        shown = 'absent' if values[name] is None else f'{values[name]:.3f}'
        assert re.search(rf'^{name.replace("_", " ")} +{shown}$', text, re.M), name
    endings = {'voc': 'results/VOC2012/Segmentation/comp6_val_cls/*.png', 'imagenet-s': '*/*.png', 'cityscapes': '*_pred_labelIds.png'}
    assert len(list((tmp_path / 'said').glob(endings[protocol]))) == 3


def test_a_part_without_labels_is_written_for_its_server(tmp_path, capsys):
    assert cli.main(['render', '--split', 'test', '--count', '2', '--out', str(tmp_path / 'real')]) == 0
    arguments = ['evaluate', '--model', ORACLE, '--data', str(tmp_path / 'real'), '--split', 'test', '--device', 'cpu']
    capsys.readouterr()
    assert "split 'test' has no labels, so there is no score; --save-to FOLDER" in error_line(capsys, *arguments)
    assert cli.main([*arguments, '--save-to', str(tmp_path / 'said')]) == 0
    assert capsys.readouterr().out == f'2 predictions for the server in {tmp_path / "said"}; no score, since split test has no labels\n'
    assert len(list((tmp_path / 'said/results/VOC2012/Segmentation/comp6_test_cls').iterdir())) == 2
    assert cli.main([*arguments, '--save-to', str(tmp_path / 'said'), '--json']) == 0
    assert json.loads(capsys.readouterr().out) == {'protocol': 'voc', 'images': 2}


def test_another_dataset_in_the_folder_is_refused(line, capsys):
    before = {path: path.read_bytes() for path in (line / 'data').rglob('*') if path.is_file()}
    assert 'steps' in error_line(capsys, *generate(line), '--steps', '3')
    assert before == {path: path.read_bytes() for path in (line / 'data').rglob('*') if path.is_file()}


def test_two_workers_make_what_one_process_makes(line, tmp_path, capsys):
    arguments = [*generate(line), '--steps', '2', '--threads', '1']
    arguments[arguments.index('--out') + 1] = str(tmp_path / 'together')
    assert cli.main([*arguments, '--workers', '2']) == 0
    assert '4 images with pseudo-masks' in capsys.readouterr().out
    alone, together = ({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()} for folder in (line / 'data', tmp_path / 'together'))
    assert alone == together


def test_generate_writes_the_shards_that_pack_makes(line, tmp_path, capsys):
    arguments = [*generate(line), '--steps', '2', '--threads', '1', '--shards', '--per-shard', '3']
    arguments[arguments.index('--out') + 1] = str(tmp_path / 'direct')
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f'4 images with pseudo-masks in {tmp_path / "direct"}, in 2 shards\n')
    assert cli.main(['pack', str(line / 'data'), '--per-shard', '3', '--out', str(tmp_path / 'packed')]) == 0
    direct, packed = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('direct', 'packed'))
    assert direct == packed and len(direct) == 4
    capsys.readouterr()
    assert 'holds other files' in error_line(capsys, *[one for one in arguments if one != '--shards'])
    assert cli.main(['check', str(tmp_path / 'direct')]) == 0


def test_an_open_block_size_is_written_into_the_dataset(line, tmp_path, capsys):
    arguments = [*generate(line), '--steps', '2', '--negative', 'a ball', '--out', str(tmp_path / 'data')]
    arguments[arguments.index('--block-size') + 1] = 'auto'
    assert cli.main(arguments) == 0
    about = json.loads((tmp_path / 'data/dataset.json').read_text())
    assert about['block_size'] == about['settings']['block_size'] == 8 and about['settings']['negative_prompt'] == 'a ball'  # what a CPU says
    assert cli.main(arguments) == 0
    arguments[arguments.index('auto')] = '4'
    capsys.readouterr()
    assert 'block_size is 8 there, 4 here' in error_line(capsys, *arguments)


def test_black_images_are_counted(line, tmp_path, capsys, monkeypatch):
    from diffusers import StableDiffusionPipeline
    monkeypatch.setattr(StableDiffusionPipeline, 'run_safety_checker', lambda self, image, device, dtype: (image, [n == 1 for n in range(len(image))]))
    assert cli.main([*generate(line), '--steps', '2', '--out', str(tmp_path / 'data')]) == 0
    assert "2 of 4 images were black, as the model's safety checker makes them, and are left out" in capsys.readouterr().out


def test_a_device_that_is_not_here(line, tmp_path, capsys, monkeypatch):
    import torch
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert '--device mps: this machine has no Apple GPU that torch can use; use --device cpu' in error_line(capsys, *generate(line), '--device', 'mps', '--out', str(tmp_path / 'data'))


def test_workers_say_in_one_line_what_is_wrong(line, tmp_path, capsys, monkeypatch):
    arguments = [*generate(line), '--steps', '2', '--workers', '1', '--out', str(tmp_path / 'new')]
    (tmp_path / 'empty').mkdir()
    assert 'worker 0 could not start: ' in error_line(capsys, *arguments, '--model', str(tmp_path / 'empty'))
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert "pip install 'synseg_kit[ray]'" in error_line(capsys, *arguments, '--ray', 'auto')
    assert not (tmp_path / 'new').exists()


def test_the_shipped_model_makes_what_class_names_ask_for(tmp_path):
    assert cli.main(['generate', '--out', str(tmp_path / 'data'), '--count', '2', '--objects', '2', '--steps', '2', '--device', 'cpu']) == 0
    lines = [json.loads(text) for text in (tmp_path / 'data/metadata.jsonl').read_text().splitlines()]
    assert [len(one['mentions']) for one in lines] == [2, 2]


@pytest.mark.parametrize(('layout', 'look', 'protocol'), [('voc', 'objects', 'voc'), ('voc', 'streets', 'voc'), ('imagenet-s', 'objects', 'imagenet-s'),
                                                           ('cityscapes', 'streets', 'cityscapes')])
def test_each_layout_is_read_by_its_protocol(tmp_path, capsys, layout, look, protocol):
    assert cli.main(['render', '--look', look, '--layout', layout, '--count', '6', '--out', str(tmp_path / 'real')]) == 0
    arguments = ['evaluate', '--model', str(shipped(f'toy-oracle/{look}')), '--data', str(tmp_path / 'real'), '--protocol', protocol, '--device', 'cpu', '--json']
    capsys.readouterr()
    assert cli.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['protocol'] == protocol and figures['images'] == 6 and figures['pixel_accuracy'] > 0.85


ORACLE = str(shipped('toy-oracle/objects'))


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """A few renders with true masks."""
    folder = tmp_path_factory.mktemp('real') / 'real'
    assert cli.main(['render', '--out', str(folder), '--count', '6']) == 0
    return folder


def test_ways_of_looking_change_the_score_as_in_the_library(real, capsys):
    from functools import partial

    from synseg_kit.datasets import VOCFolder
    from synseg_kit.evaluation import evaluate
    from synseg_kit.inference import Inference, predict
    from synseg_kit.training import load_segmenter
    capsys.readouterr()
    assert cli.main(['evaluate', '--model', ORACLE, '--data', str(real), '--json', '--device', 'cpu', '--scales', '0.5,1', '--flip', '--window', '96', '--stride', '48x64',
                     '--short-side', '160', '--crf', '--batch-size', '4']) == 0
    said, oracle = json.loads(capsys.readouterr().out), load_segmenter(ORACLE)
    way = Inference((.5, 1.), True, 96, (48, 64), True, 160, 4)
    card = evaluate(partial(predict, oracle, inference=way), VOCFolder(real, 'val', oracle.class_set), oracle.class_set, progress=False)
    assert said['miou'] == card.miou


def test_predict_labels_files_and_folders(real, tmp_path, capsys):
    photos = sorted((real / 'VOCdevkit/VOC2012/JPEGImages').iterdir())
    (tmp_path / 'more').mkdir()
    for photo in photos[2:]: (tmp_path / 'more' / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / 'more/cut.jpg').write_bytes(photos[0].read_bytes()[:900])
    arguments = ['predict', ORACLE, *map(str, photos[:2]), str(tmp_path / 'more'), '--out', str(tmp_path / 'out'), '--device', 'cpu']
    capsys.readouterr()
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith('6 masks in ') and 'synseg: skipped' in said.err and 'cut.jpg is not an image that can be read' in said.err
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['index.html', 'masks', 'overlays', 'predictions.json']
    page = (tmp_path / 'out/index.html').read_text()
    assert all(photo.stem in page for photo in photos) and 'cut.jpg' in page and page.count('src="data:image/png') == 7
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out/masks').iterdir()}
    assert cli.main(arguments) == 0 and before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out/masks').iterdir()}
    assert (tmp_path / 'out/index.html').read_text() == page
    capsys.readouterr()
    assert 'holds other predictions: inference.flip is false there, true here' in error_line(capsys, *arguments, '--flip')
    assert 'holds other files' in error_line(capsys, *arguments[:3], '--out', tmp_path / 'more', '--device', 'cpu')


def test_masks_of_predict_are_right(real, tmp_path):
    """The masks, read as PNG, against the truth: as many pixels right as the oracle gets."""
    import numpy as np
    from PIL import Image
    assert cli.main(['predict', ORACLE, str(real / 'VOCdevkit/VOC2012/JPEGImages'), '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 0
    right = [np.array(Image.open(mask)) == np.array(Image.open(real / 'VOCdevkit/VOC2012/SegmentationClass' / mask.name)) for mask in (tmp_path / 'out/masks').iterdir()]
    assert len(right) == 6 and np.mean(right) > .9


def test_export_writes_a_file_that_runs(tmp_path, capsys):
    pytest.importorskip('onnxscript', reason="needs pip install 'synseg_kit[onnx]'")
    onnxruntime = pytest.importorskip('onnxruntime', reason="needs pip install 'synseg_kit[onnx]'")
    assert cli.main(['export', ORACLE, '--onnx', str(tmp_path / 'toys.onnx'), '--size', '32x64']) == 0
    assert 'toys.onnx says what the segmenter says' in capsys.readouterr().out
    shapes = onnxruntime.InferenceSession(tmp_path / 'toys.onnx', providers=['CPUExecutionProvider']).get_outputs()[0].shape
    assert shapes[1:] == [13, 32, 64]


def test_the_life_of_a_dataset(capsys, tmp_path):
    """Checked, mended, packed and unpacked, merged, split and counted; a check that found something says so with its status."""
    made, other = (farm.write(tmp_path / name, first=10 * n) for n, name in enumerate(('made', 'other')))
    sound = farm.contents(made.root)

    def said(*arguments, status=0):
        assert cli.main([str(argument) for argument in arguments]) == status
        return capsys.readouterr().out

    assert said('check', made.root) == '7 samples, nothing is wrong\n'
    (made.root / 'metadata.jsonl').unlink()
    (made.root / 'notes.txt').write_text('x')
    assert re.search(r'2 errors, 0 notes: 1 metadata, 1 foreign\n\nfinding +file +why\nmetadata +metadata.jsonl +is missing\n', said('check', made.root, status=1))
    assert [f['kind'] for f in json.loads(said('check', made.root, '--json', status=1))['findings']] == ['metadata', 'foreign']
    assert 'written again' in said('check', made.root, '--mend', status=1) and farm.contents(made.root) == sound
    assert 'SHA256SUMS' in said('check', other.root, '--seal') and (other.root / 'SHA256SUMS').is_file()
    assert said('pack', made.root, '--out', tmp_path / 'shards', '--per-shard', 3).startswith('7 samples in 3 files in')
    assert 'packed already' in error_line(capsys, 'pack', tmp_path / 'shards', '--out', tmp_path / 'x')
    assert 'packed; split the folder' in error_line(capsys, 'split', tmp_path / 'shards', 'fit=0.5', 'held=0.5')
    assert 'byte for byte' in said('unpack', tmp_path / 'shards', '--out', tmp_path / 'back') and farm.contents(tmp_path / 'back') == sound
    assert said('check', tmp_path / 'shards') == '7 samples, nothing is wrong\n'
    assert said('merge', made.root, other.root, '--out', tmp_path / 'both') == f'14 samples in {tmp_path / "both"}, 0 equal ones left out\n'
    assert said('split', tmp_path / 'both', 'fit=0.5', 'held=0.5') == 'fit: 8 samples\nheld: 6 samples\n'
    counted = json.loads(said('statistics', tmp_path / 'both', '--split', 'held', '--json', '--picture', tmp_path / 'picture.png'))
    assert counted['images'] == 6 and {*counted['classes']} == {*farm.FARM.labels} and (tmp_path / 'picture.png').stat().st_size > 1000
    assert said('statistics', tmp_path / 'shards').startswith('7 images, most of them 32 x 24;') and 'sheep' in said('statistics', made.root)
    assert said('statistics', made.root, '--classes', 'voc').startswith('7 images')
    assert '1 of 7 mask files' not in said('check', made.root, '--classes', 'voc')


def test_a_window_to_explore_ends_with_its_process(tmp_path):
    """`synseg explore` without --out prints an address, serves it, and ends when interrupted."""
    import signal
    made = farm.write(tmp_path / 'made')
    command = [sys.executable, '-c', 'import sys; from synseg_kit.cli import main; sys.exit(main())', 'explore', str(made.root), '--no-browser']
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # who runs the tests in the background has switched interrupts off
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears) as process:
        try:
            url = process.stdout.readline().strip()
            assert re.fullmatch(r'http://127\.0\.0\.1:\d+/\?token=\S{32}', url)
            with urllib.request.urlopen(url, timeout=30) as answer: assert b'class Browser' in answer.read()
            with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(url.partition('?')[0], timeout=30)
        finally: process.send_signal(signal.SIGINT)
        try: assert process.wait(30) == 130 and 'Traceback' not in process.stderr.read()
        finally: process.kill()  # or leaving would wait for it


def test_installed_notebooks_are_copied_and_never_overwritten(tmp_path, monkeypatch):
    from synseg_kit import toyworld
    runs = tmp_path / 'package/runs'
    runs.mkdir(parents=True)
    for name in ('quickstart', 'voc'): (runs / f'{name}.ipynb').write_text('{}')
    monkeypatch.setattr(toyworld, 'shipped', lambda name: tmp_path / 'package' / name)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/voc.ipynb').write_text('my own')
    start = cli.notebooks_of(tmp_path / 'mine')
    assert start == tmp_path / 'mine/start.ipynb' and (tmp_path / 'mine/voc.ipynb').read_text() == 'my own' and (tmp_path / 'mine/quickstart.ipynb').read_text() == '{}'
    code = [''.join(cell['source']) for cell in json.loads(start.read_text())['cells'] if cell['cell_type'] == 'code']
    compile(code[0], 'start', 'exec')
    start.write_text('changed')
    assert cli.notebooks_of(tmp_path / 'mine').read_text() == 'changed'


def test_lab_listens_here_alone_and_wants_its_token(tmp_path, monkeypatch):
    """What JupyterLab is told; that it keeps to it is tried in tests/browser."""
    told = {}
    monkeypatch.setattr(subprocess, 'run', lambda command, env: told.update(command=command, env=env) or subprocess.CompletedProcess(command, 3))
    monkeypatch.delenv('JUPYTER_TOKEN', raising=False)
    assert cli.main(['lab', '--no-browser', '--port', '8890', '--folder', str(tmp_path)]) == 3
    command = told['command']
    assert {'--ServerApp.ip=127.0.0.1', '--ServerApp.port=8890', '--no-browser', '--LabApp.default_url=/lab/tree/index.ipynb', '--LabApp.news_url='} <= set(command)
    assert len(told['env']['JUPYTER_TOKEN']) == 48 and told['env']['JUPYTER_TOKEN'] not in ' '.join(command)


def test_lab_says_what_is_missing(monkeypatch, capsys):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert 'pip install jupyterlab' in error_line(capsys, 'lab')


def test_train_takes_shards_and_parts(tmp_path, capsys):
    """Not the training, which has tests of its own: what is opened for it."""
    made = farm.write(tmp_path / 'made')
    cli.main(['pack', str(made.root), '--out', str(tmp_path / 'shards'), '--per-shard', '3'])
    (made.root / 'ImageSets/Segmentation/fit.txt').write_text('000001\n000004\n')
    common = ('--steps', '1', '--batch-size', '2', '--crop', '32', '--device', 'cpu', '--precision', 'fp32')
    for data, more in ((tmp_path / 'shards', ('--shards-at-once', '2')), (made.root, ('--split', 'fit'))):
        assert cli.main(['train', '--data', str(data), '--out', str(tmp_path / f'out-{data.name}'), *common, *more]) == 0
    assert json.loads((tmp_path / 'out-made/segmenter.json').read_text()) and (tmp_path / 'out-shards/segmenter.json').is_file()
    capsys.readouterr()
    assert "holds the shards of 'train', not of 'fit'" in error_line(capsys, 'train', '--data', tmp_path / 'shards', '--split', 'fit', '--out', tmp_path / 'x')


def test_pages_to_explore(tmp_path, capsys):
    assert cli.main(['explore', 'toy', '--prompt', 'a cat and a dog', '--steps', '2', '--out', str(tmp_path / 'cat.html')]) == 0 and 'opens in any browser' in capsys.readouterr().out
    page = (tmp_path / 'cat.html').read_text()
    assert 'a cat and a dog' in page and '"mask:synseg": "part' in page and '"layers": "part' in page
    assert cli.main(['generate', '--out', str(tmp_path / 'data'), '--count', '2', '--steps', '2', '--block-size', '2']) == 0
    assert cli.main(['explore', str(tmp_path / 'data'), '--out', str(tmp_path / 'data.html')]) == 0 and '"page:0": "part0"' in (tmp_path / 'data.html').read_text()
    capsys.readouterr()
    for wrong, message in (([tmp_path / 'data', '--segmenter', 'x'], 'leave --segmenter out'), (['toy', '--out', 'x.html'], 'say with --prompt'), (['toy', '--prompt', 'cat', '--out', 'x.png'], 'ends in .html'), ([tmp_path / 'data', '--prompt', 'a', '--out', 'x.html'], 'has its own prompts')):
        assert message in error_line(capsys, 'explore', *wrong)
