"""Pictures: what goes in comes out in the right colours, nothing is clipped or left behind, wrong data is refused."""
import base64
import subprocess
import sys
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb as colour
from PIL import Image

from synseg_kit.classes import ClassSet, toy_objects, toy_streets, voc
from synseg_kit.pictures import (
    SERIES,
    STATIONS,
    Case,
    class_heat_picture,
    colour_legend,
    enlarge,
    heat_picture,
    light_figures,
    light_png,
    mask_picture,
    picture_grid,
    picture_row,
    show_cases,
    show_class_heat,
    show_flow,
    show_heat,
    show_image,
    show_mask,
    show_palette,
    show_prompt,
    show_reliability,
    style,
    to_heat,
    to_image,
    to_labels,
    to_rgb,
)
from synseg_kit.prompts import Prompt, find_mentions

TOYS, RNG = toy_objects(), np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 64, 3), np.uint8)
LABELS = np.zeros((48, 64), np.uint8)
LABELS[10:30, 10:30], LABELS[20:40, 40:60], LABELS[:4] = 7, 3, 255
PROMPT = find_mentions('a photo of a poodle and an old barn', TOYS)
CASE = Case(PROMPT, IMAGE, RNG.random((2, 8, 8)), LABELS, RNG.random((48, 64)), LABELS, LABELS)


@pytest.fixture(autouse=True)
def closed():
    """Close what a test opened."""
    yield
    plt.close('all')


def drawn(ax):
    """The picture in an Axes."""
    return np.asarray(ax.images[0].get_array())


def inside(figure, slack=1.5):
    """Tell whether all that is drawn lies on the figure's canvas."""
    figure.canvas.draw()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    over = slack / 80
    return min(box.x0, box.y0) >= -over and box.x1 <= page.width + over and box.y1 <= page.height + over


# ---------- what is read

TORCH = torch.from_numpy(IMAGE)
SAME = {
    'numpy HWC': IMAGE, 'numpy CHW': IMAGE.transpose(2, 0, 1), 'float64': IMAGE / 255,
    'float32': (IMAGE / 255).astype(np.float32), 'PIL': Image.fromarray(IMAGE),
    'PIL RGBA': Image.fromarray(IMAGE).convert('RGBA'), 'torch HWC': TORCH, 'torch CHW': TORCH.permute(2, 0, 1),
    'torch CHW float': TORCH.permute(2, 0, 1) / 255, 'torch HWC float': TORCH / 255,
    'with gradient': (TORCH / 255).requires_grad_()}


@pytest.mark.parametrize('same', SAME.values(), ids=SAME)
def test_images_are_read_alike(same):
    assert to_image(same).dtype == np.uint8 and (to_image(same) == IMAGE).all()
    assert (drawn(show_image(same)) == IMAGE).all()


def test_half_precision_and_grey():
    assert np.abs(to_image((torch.from_numpy(IMAGE).permute(2, 0, 1) / 255).bfloat16()).astype(int) - IMAGE).max() <= 1
    assert (to_image(np.full((4, 5), .2))[..., 1] == 51).all() and to_image(Image.new('L', (5, 4),
        7)).tolist()[0][0] == [7, 7, 7]


def test_three_by_three_torch_images_have_channels_first():
    image = torch.zeros(3, 3, 3); image[0] = 1
    assert (to_image(image) == [255, 0, 0]).all()


@pytest.mark.parametrize('bad, message', [
    (np.zeros((2, 8, 8, 3), np.uint8), r'\[2, 8, 8, 3\] and type uint8 is not one RGB image'), (np.zeros((8, 8, 4),
        np.uint8), r'\[8, 8, 4\]'), (np.zeros(5, np.uint8), 'not one RGB'),
    (torch.zeros(1, 8, 8), r'\[1, 8, 8\]'), (np.zeros((0, 4, 3), np.uint8), 'not one RGB'), (np.full((4, 4, 3), 3.),
        'holds values from 3 to 3'), (np.full((4, 4, 3), np.nan), 'holds values from nan'),
    (np.zeros((4, 4, 3), np.int64), 'not clear'), ('dog.png', 'got str'), ([[1, 2]], 'got list'), (None,
        'got NoneType')])
def test_what_is_no_image_is_refused(bad, message):
    with pytest.raises(ValueError, match=message): to_image(bad)


def test_labels_and_heat_are_read():
    for same in (LABELS, Image.fromarray(LABELS), torch.from_numpy(LABELS)): assert (to_labels(same) == LABELS).all()
    palette_image = Image.fromarray(LABELS).convert('P')
    assert to_labels(palette_image).shape == LABELS.shape
    assert to_heat(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == np.float32
    for bad, message in ((LABELS / 1., 'must be integers'), (LABELS[None], r'shape \[1, 48, 64\]'),
                         (LABELS > 3, 'bool')):
        with pytest.raises(ValueError, match=message): to_labels(bad)
    for bad, message in ((np.zeros((1, 4, 4)), r'got shape \[1, 4, 4\]'), (np.full((2, 2), np.inf), 'not finite')):
        with pytest.raises(ValueError, match=message): to_heat(bad)


# ---------- masks

def test_to_rgb_is_the_palette():
    rgb = to_rgb(LABELS, TOYS)
    assert rgb.dtype == np.uint8 and all((rgb[LABELS == i] == TOYS.palette[i]).all() for i in np.unique(LABELS))
    with pytest.raises(ValueError, match='unknown id 13'): to_rgb(np.full((2, 2), 13), TOYS)


def test_a_mask_alone_is_flat_and_void_is_grey_stripes():
    picture = mask_picture(LABELS, TOYS)
    assert all((picture[LABELS == i] == TOYS.palette[i]).all() for i in (0, 3, 7))
    void = picture[LABELS == 255]
    assert len(np.unique(void, axis=0)) == 2 and (void.std(1) == 0).all() and void.min() > 180


def test_a_mask_over_its_image():
    picture = mask_picture(LABELS, TOYS, IMAGE, opacity=.5)
    half = IMAGE[20, 20] / 2 + TOYS.palette[7] / 2
    assert np.abs(picture[20, 20] - half).max() <= 1                            # inside: half and half
    assert (picture[10, 20] == TOYS.palette[7]).all()                           # edge: firm
    assert (picture[45, 30].astype(int) >= IMAGE[45, 30]).all()                 # background: a little paler
    assert (mask_picture(LABELS, TOYS, IMAGE, opacity=0.)[20, 20] == IMAGE[20, 20]).all()


def test_without_a_background_id_0_is_tinted_too():
    labels = np.zeros((48, 64), np.uint8)
    assert (mask_picture(labels, toy_streets(), IMAGE, opacity=1.) == toy_streets().palette[0]).all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r'the mask is 4 x 4 and the image 48 x 64 \(height x width\)'):
        mask_picture(np.zeros((4, 4), int), TOYS, IMAGE)
    with pytest.raises(ValueError, match='opacity must be from 0 to 1'): mask_picture(LABELS, TOYS, IMAGE, 2.)


def test_many_classes_with_void_1000():
    many = ClassSet('many', tuple(f'class {i}' for i in range(919)), void=1000)
    labels = np.array([[0, 300], [919, 1000]], np.uint16)
    assert (mask_picture(labels, many)[0, 1] == many.palette[300]).all()
    show_mask(labels, many); show_palette(many)


def test_legend_names_what_is_there():
    ax = show_mask(LABELS, TOYS)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['background', 'building', 'dog', 'void']
    patches = ax.get_legend().get_patches()
    assert np.allclose(patches[2].get_facecolor()[:3], TOYS.palette[7] / 255) and patches[3].get_hatch()
    assert show_mask(LABELS, TOYS, legend=False).get_legend() is None
    assert colour_legend(ax.figure, [1], TOYS, loc='lower left').get_texts()[0].get_text() == 'tree'


# ---------- heat and reliability

def test_enlarge_keeps_values_and_places():
    spot = np.zeros((4, 4)); spot[1, 2] = 1
    big = enlarge(spot, (64, 32))
    assert big.shape == (64, 32) and big.min() >= 0 and .9 < big.max() <= 1
    y, x = np.unravel_index(big.argmax(), big.shape)
    assert abs(y - 23.5) <= 1 and abs(x - 19.5) <= 1                     # the middle of the cell
    assert np.allclose(enlarge(np.full((3, 5), .3), (9, 10)), .3)
    assert np.allclose(enlarge(big, big.shape), big)


def test_heat_has_viridis_ends_and_limits():
    ends = [[68, 1, 84], [253, 231, 37]]
    assert heat_picture(np.array([[2., 5.]])).tolist() == [ends]
    assert heat_picture(np.array([[2., 5.]]), limits=(5., 9.)).tolist() == [[ends[0], ends[0]]]
    assert (heat_picture(np.ones((2, 2))) == ends[0]).all()
    with pytest.raises(ValueError, match='low, high'): heat_picture(np.ones((2, 2)), limits=(2., 1.))


def test_heat_over_an_image_has_the_images_size():
    assert drawn(show_heat(RNG.random((8, 8)), IMAGE)).shape == IMAGE.shape
    assert drawn(show_class_heat(torch.rand(2, 8, 8), (3, 7), TOYS, IMAGE)).shape == IMAGE.shape


def test_each_class_glows_in_its_colour():
    heat = np.zeros((2, 4, 4)); heat[0, 0, 0] = heat[1, 3, 3] = 1
    picture = class_heat_picture(heat, (1, 5), TOYS)   # tree: green, sign: red
    assert picture[0, 0].argmax() == 1 and picture[3, 3].argmax() == 0 and (picture[0, 3] == 30).all()
    with pytest.raises(ValueError, match='one map for each of the 3 class ids'):
        class_heat_picture(heat, (1, 2, 3), TOYS)
    with pytest.raises(ValueError, match=r'got shape \[4, 4\]'): class_heat_picture(heat[0], (1,), TOYS)


def test_dark_classes_glow_too():
    boat, heat = voc().id_of('boat'), np.zeros((1, 4, 4))
    heat[0, 1, 1] = 1
    assert class_heat_picture(heat, (boat,), voc())[1, 1].mean() > 90   # VOC's boat is navy


def test_reliability_scale_is_fixed():
    ax = show_reliability(np.full((4, 4), .4), scale=True)
    assert ax.images[0].get_clim() == (0, 1) and ax.images[0].get_cmap().name == 'cividis'
    for bad in (np.full((2, 2), 1.5), np.full((2, 2), -.1)):
        with pytest.raises(ValueError, match='reliability must be from 0 to 1'): show_reliability(bad)


# ---------- text

def test_a_prompt_is_all_there_and_its_mentions_are_coloured():
    ax = show_prompt(PROMPT, TOYS)
    assert ' '.join(t.get_text() for t in ax.texts) == PROMPT.text
    boxed = {t.get_text(): t.get_bbox_patch().get_facecolor()[:3] for t in ax.texts if t.get_bbox_patch()}
    assert set(boxed) == {'poodle', 'barn'} and np.allclose(boxed['barn'], TOYS.palette[3] / 255, atol=.01)


@pytest.mark.parametrize('text', ['a cat', 'costs $5 and $6 a cat', 'a_b^c {cat}', 'cat,dog; (owl)', 'x' * 300,
                                  ' spaced  out   cat '])
def test_any_text_is_drawn_as_it_is(text):
    prompt = find_mentions(text, TOYS)
    ax = show_prompt(prompt, TOYS)
    ax.figure.canvas.draw()
    assert ''.join(t.get_text() for t in ax.texts) == ''.join(text.split())


def test_lines_do_not_run_into_each_other_or_out_of_the_picture():
    prompt = find_mentions('a photo of a poodle, a barn, a stop sign, an owl, two flamingos and a sailboat on the '
                           'floor before a red curtain', TOYS)
    figure, axes = picture_row(2, widths=(1.4, 1.), height=2.)
    show_prompt(prompt, TOYS, axes[0])
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes[0].texts]
    area = axes[0].get_window_extent()
    assert max(b.x1 for b in boxes) <= area.x1 + 1 and min(b.y0 for b in boxes) >= area.y0 and max(b.y1
        for b in boxes) <= area.y1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_prompt_of_another_class_set_is_refused():
    with pytest.raises(ValueError, match="class id 7; class set 'two' has 0 to 2"):
        show_prompt(PROMPT, ClassSet('two', ('a', 'b')))


@pytest.mark.parametrize('c', [voc(), TOYS, toy_streets()], ids=lambda c: c.name)
@pytest.mark.parametrize('words', [False, True])
def test_palette_names_every_id(c, words):
    ax = show_palette(c, words=words)
    texts = [t.get_text() for t in ax.texts]
    assert set(c.labels) <= set(texts) and inside(ax.figure)


def test_long_palettes_are_cut_and_counted():
    many = ClassSet('many', tuple(f'class {i}' for i in range(200)))
    assert 'and 141 more' in [t.get_text() for t in show_palette(many).texts]


# ---------- layout

def test_style_is_undone_also_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError), style(): raise KeyError
    show_cases([CASE], TOYS)
    assert dict(mpl.rcParams) == before


def test_series_colours_differ_for_all_readers():
    """Simulated red-blindness (Viénot et al. 1999, linear RGB) leaves the first six colours apart."""
    def linear(c): return np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055) ** 2.4)
    protan = np.array([[.11238, .88762, 0], [.11238, .88762, 0], [.00401, -.00401, 1]])
    seen = np.array([protan @ linear(np.array(colour(c))) for c in SERIES[:6]]) ** (1 / 2.2)
    gaps = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > .08


def test_axes_given_are_used_and_figures_returned_are_not_kept():
    _, axes = picture_row(2)
    assert show_image(IMAGE, axes[0]) is axes[0] and show_mask(LABELS, TOYS, ax=axes[1]) is axes[1]
    show_cases([CASE], TOYS); show_flow(CASE, CASE, TOYS)
    assert plt.get_fignums() == []


def test_grid_places_are_apart_and_on_the_page():
    figure, axes = picture_grid(2, 3, widths=(1., 2., .5), height=1.)
    boxes = [ax.get_window_extent() for ax in axes.ravel()]
    assert axes.shape == (2, 3) and inside(figure) and not any(a.overlaps(b) for i, a in enumerate(boxes)
        for b in boxes[:i])
    assert np.allclose([b.width / b.height for b in boxes[:3]], (1, 2, .5))
    with pytest.raises(ValueError, match='2 widths for 3 columns'): picture_grid(1, 3, (1., 1.))


# ---------- cases and flow

def test_cases_show_only_filled_columns_and_name_them():
    figure = show_cases([Case(image=IMAGE, truth=LABELS), Case(image=IMAGE)], TOYS)
    assert [ax.get_title('left') for ax in figure.axes[:2]] == ['image', 'truth'] and len(figure.axes) == 4
    assert len(figure.axes[3].images) == 0   # nothing to draw there
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['background', 'building', 'dog', 'void']


@pytest.mark.parametrize('columns', [None, STATIONS, ('truth', 'image')])
@pytest.mark.parametrize('over_image', [True, False])
def test_cases_fit_their_page(columns, over_image):
    figure = show_cases([CASE, Case(PROMPT, IMAGE)], TOYS, columns, over_image=over_image)
    assert inside(figure)


def test_heat_may_be_one_map_or_one_a_class():
    one = Case(image=IMAGE, heat=RNG.random((8, 8)))
    assert len(show_cases([one, Case(PROMPT, IMAGE, torch.rand(2, 8, 8))], TOYS).axes) == 6
    with pytest.raises(ValueError, match='needs the prompt'):
        show_cases([Case(image=IMAGE, heat=RNG.random((2, 8, 8)))], TOYS)


@pytest.mark.parametrize('cases, columns, message', [([], None, 'no cases'), ([Case()], None, 'cases are empty'),
                                                     ([CASE], ('pixels',), "unknown column 'pixels'"),
                                                     ([Case(truth=np.full((2, 2), 99))], None, 'unknown id 99')])
def test_cases_refuse(cases, columns, message):
    with pytest.raises(ValueError, match=message): show_cases(cases, TOYS, columns)


@pytest.mark.parametrize('c', [TOYS, voc()], ids=lambda c: c.name)
@pytest.mark.parametrize('miou', [None, .8312])
def test_flow_fits_its_page(c, miou):
    prompt = find_mentions('a dog asleep by a long boat', c)
    made = Case(prompt, IMAGE, RNG.random((2, 8, 8)), LABELS, RNG.random((48, 64)))
    figure = show_flow(made, CASE, c, miou)
    texts = [t.get_text() for t in figure.texts]
    assert inside(figure) and {'choose', 'generate', 'segment',
                               'train'} <= set(texts) and ('0.83' in texts) == (miou is not None)
    assert len([ax for ax in figure.axes if ax.images]) == 7


def test_flow_with_hundreds_of_classes():
    many = ClassSet('many', tuple(f'class {i}' for i in range(240)))
    prompt = find_mentions('a class 200 and a class 3', many)
    figure = show_flow(Case(prompt, IMAGE, RNG.random((2, 8, 8)), LABELS, RNG.random((48, 64))), CASE, many)
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert 'class 200' in texts and 'and 220 more' in texts


def test_flow_needs_all_stations():
    with pytest.raises(ValueError, match='the made case lacks heat, mask'):
        show_flow(Case(PROMPT, IMAGE, reliability=LABELS / 255), CASE, TOYS)
    with pytest.raises(ValueError, match='the tested case lacks truth'):
        show_flow(CASE, Case(image=IMAGE, prediction=LABELS), TOYS)
    assert show_flow(Case(Prompt('a quiet evening'), IMAGE, RNG.random((8, 8)), LABELS, LABELS / 255), CASE, TOYS)


# ---------- what a page keeps

def test_light_pngs_differ_by_two_at_most_and_keep_black_and_white():
    ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)
    file = BytesIO()
    Image.fromarray(ramp).convert('RGBA').save(file, 'PNG')
    light = np.asarray(Image.open(BytesIO(light_png(file.getvalue()))))
    assert light.shape == ramp.shape and np.abs(light.astype(int) - ramp).max() == 2
    assert light[0].max() == 0 and light[255].min() == 255 and len(np.unique(light)) == 65
    assert (np.diff(light[:, 0, 0].astype(int)) >= 0).all()


NOTEBOOK = """
from execnb.shell import CaptureShell

shell = CaptureShell(profile=False)
shell.run('import numpy as np; from synseg_kit.pictures import light_figures, picture_row, show_image; light_figures()')
(output,) = shell.run('figure, axes = picture_row(1); show_image(np.arange(49152).reshape(128, 128, 3).astype(np.uint8) % 251, axes[0]); figure')
print(output['data']['image/png'])
"""


def test_a_notebook_shows_light_figures():
    done = subprocess.run([sys.executable, '-c', NOTEBOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(done.stdout.strip().splitlines()[-1]))))
    assert pixels.shape[2] == 3 and len(np.unique(pixels)) > 40 and set(np.unique(pixels % 4)) <= {0, 3} and (pixels[pixels % 4 == 3] == 255).all()


def test_light_figures_need_a_notebook():
    with pytest.raises(RuntimeError, match='for notebooks'): light_figures()
