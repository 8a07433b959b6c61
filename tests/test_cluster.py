"""Clusters: the same dataset from actors, also when a node is lost; runs of a sweep as tasks."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_maker import FakeMaker, NotAgain

from synseg_kit import cluster
from synseg_kit.classes import ClassSet
from synseg_kit.coordination import ThisProcess, synthesize_in
from synseg_kit.prompts import find_mentions
from synseg_kit.shards import export_shards

PETS = ClassSet('pets', ('cat', 'dog', 'ball'))
PROMPTS = [find_mentions(text, PETS) for text in ('a cat and a dog', 'a red ball', 'a red ball', 'the dog on a ball')] * 6


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    for call in (cluster.require_ray, lambda: cluster.connect('local'), lambda: cluster.RayPool(FakeMaker('x'), 1), cluster.RayPlaces):
        with pytest.raises(ImportError, match=r"pip install 'synseg_kit\[ray\]'"): call()


def test_importing_clusters_imports_no_ray():
    code = 'import sys, synseg_kit.cluster; sys.exit(bool({"ray", "torch"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize(('resources', 'count', 'cpus', 'gpus', 'fit'), [({'CPU': 8., 'GPU': 2.}, 4, 1, 1, 2), ({'CPU': 3.}, 2, 1, 0, 2), ({'CPU': 3., 'GPU': 8.}, 8, 1, .5, 3)])
def test_as_many_workers_as_there_is_room_for(resources, count, cpus, gpus, fit): assert cluster.check_room(resources, count, cpus, gpus) == fit


def test_workers_without_room_are_refused():
    with pytest.raises(ValueError, match='asks for 1 CPUs and 1 GPUs; the cluster has 4 and 0 in all'): cluster.check_room({'CPU': 4.}, 2, 1, 1)


@pytest.fixture(scope='module')
def three_nodes():
    """Make a Ray cluster of three nodes with a CPU each, on this machine."""
    pytest.importorskip('ray', reason="needs pip install 'synseg_kit[ray]'")
    os.environ.update(RAY_USAGE_STATS_ENABLED='0', RAY_raylet_start_wait_time_s='180', RAY_prestart_worker_first_driver='0')  # a slow machine takes its time
    import ray
    from ray.cluster_utils import Cluster
    os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), str(Path(cluster.__file__).parent.parent), os.environ.get('PYTHONPATH', '')])  # as on a real cluster, each node imports by itself
    nodes = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False, 'object_store_memory': 100_000_000})
    others = [nodes.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
    cluster.connect(nodes.address)
    yield nodes, others
    ray.shutdown()
    nodes.shutdown()


def test_a_sweep_runs_on_the_cluster(three_nodes, tmp_path):
    import nbformat

    from synseg_kit.sweeps import plan_sweep, sweep
    cells = [nbformat.v4.new_code_cell("out: str = 'o'\nseed: int = 0\nx: int = 1", metadata={'tags': ['parameters']}),
             nbformat.v4.new_code_cell("import json\nfrom pathlib import Path\nPath(out, 'result.json').write_text(json.dumps({'parameters': {'x': x, 'seed': seed}, 'metrics': {'y': x * x}, 'seed': seed, 'seconds': 1}))")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / 'job.ipynb')
    plan = plan_sweep(tmp_path / 'job.ipynb', tmp_path / 'out', {'x': [2, 3]})
    assert [found.state for found in sweep(plan, tmp_path / 'job.ipynb', places=cluster.RayPlaces(), progress=False)] == ['done', 'done']
    assert [json.loads((p.folder / 'result.json').read_text())['metrics']['y'] for p in plan] == [4, 9]


def test_a_lost_node_costs_nothing_but_its_blocks(three_nodes, tmp_path, caplog):
    nodes, others = three_nodes
    (tmp_path / 'notes').mkdir()
    whole = synthesize_in(ThisProcess(FakeMaker(str(tmp_path / 'notes'))(0)), PROMPTS, tmp_path / 'whole', PETS, 2, progress=False, keep=NotAgain(apart=1))
    export_shards(whole, tmp_path / 'packed', 5, progress=False)

    class LosesANode(cluster.RayPool):
        """A pool whose second machine fails after three blocks; work begins when all workers are there, or the others might do it all before."""
        made, greeted = 0, None

        def receive(self):
            if self.greeted is None: self.greeted = [answer for _ in range(3) for answer in super(LosesANode, self).receive()]
            answers = [*self.greeted] or super().receive()
            self.greeted.clear()
            for worker, kind, content in answers:
                yield worker, kind, content
                self.made += kind == 'made'
                if self.made == 3:
                    self.made += 1
                    nodes.remove_node(others[1], allow_graceful=False)

    pool = LosesANode(FakeMaker(str(tmp_path / 'notes'), pause=.3), 3)
    synthesize_in(pool, PROMPTS, tmp_path / 'data', PETS, 2, progress=False, keep=NotAgain(apart=1), per_shard=5)
    assert contents(tmp_path / 'data') == contents(tmp_path / 'packed') and pool.made >= 12 and len(whole) < len(PROMPTS)
    assert 'another one takes its place' in caplog.text


def test_a_broken_starter_says_where(three_nodes, tmp_path):
    with pytest.raises(Exception, match='could not start: on .*: there is no folder my-model'):
        synthesize_in(cluster.RayPool(FakeMaker(str(tmp_path), missing_model=True), 1), PROMPTS, tmp_path / 'data', PETS, 2, progress=False)
