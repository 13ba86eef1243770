"""k-means that reads its examples in batches, and the centroids' file: true means, and nothing wrong is ever read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbert import UserError
from kdbert.centroids.algorithm import Clusters, FeatureBatch, Features, kmeans, lloyd, spread_out
from kdbert.centroids.builder import centroids_path, find_or_build
from kdbert.centroids.file import Centroids, Description, Origin
from kdbert.errors import Interrupted
from kdbert.recipe.sections import MemorySection
from kdbert.training.precision import make_accelerator

COUNT, WIDTH = 200, 12


def some_features(seed: int = 0, count: int = COUNT, width: int = WIDTH) -> torch.Tensor:
    """Rows of several groups, with zeros from some column on, as features of short examples have."""
    random = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(7, width, generator=random, dtype=torch.float64)
    rows = centers[torch.randint(7, (count,), generator=random)]
    rows = rows + torch.randn(count, width, generator=random, dtype=torch.float64)
    lengths = torch.randint(width // 2, width + 1, (count,), generator=random)
    return rows * (torch.arange(width)[None, :] < lengths[:, None])


def in_batches(features: torch.Tensor, size: int) -> Features:
    """The features, longest rows first as a run reads them, some at a time, without the columns that are all zero."""
    lengths = (features != 0).int().mul(torch.arange(1, features.shape[1] + 1)).max(1).values
    order = lengths.argsort(descending=True, stable=True)

    def read() -> Iterator[FeatureBatch]:
        for rows in order.split(size):
            yield FeatureBatch(rows, features[rows][:, : max(1, int(lengths[rows].max()))])

    return read


def assert_true_means(found: Clusters, features: torch.Tensor) -> None:
    """Each centroid is the mean of the examples that are said to be its own."""
    groups = found.assignments.numpy()
    for cluster, centroid in enumerate(found.centroids.numpy()):
        members = features.numpy()[groups == cluster]
        assert len(members) == found.counts[cluster] > 0
        np.testing.assert_allclose(centroid, members.mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_batch_size_of_reading_changes_nothing(size: int) -> None:
    features = some_features()
    whole = kmeans(in_batches(features, COUNT), COUNT, 7, WIDTH, seed=3, passes=20)
    found = kmeans(in_batches(features, size), COUNT, 7, WIDTH, seed=3, passes=20)
    assert torch.equal(found.assignments, whole.assignments)
    assert found.passes == whole.passes
    assert found.inertia == pytest.approx(whole.inertia, rel=1e-12)
    torch.testing.assert_close(found.centroids, whole.centroids, rtol=1e-12, atol=1e-12)
    assert_true_means(found, features)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30), data=st.data(), seed=st.integers(0, 2**32), copies=st.booleans(), size=st.integers(1, 9)
)
def test_centroids_are_true_means_and_no_cluster_is_empty(
    count: int, data: st.DataObject, seed: int, copies: bool, size: int
) -> None:
    """Also where the examples are copies of a few, and where there are as many clusters as examples."""
    clusters = data.draw(st.integers(1, count))
    features = some_features(seed % 1000, count)
    if copies:
        features = features[torch.randint(min(3, count), (count,), generator=torch.Generator().manual_seed(seed))]
    found = kmeans(in_batches(features, size), count, clusters, WIDTH, seed=seed, passes=10)
    assert found.centroids.shape == (clusters, WIDTH)
    assert int(found.counts.sum()) == count
    assert_true_means(found, features)


def test_a_seed_gives_the_same_bits_and_another_seed_another_start() -> None:
    read = in_batches(some_features(), 50)
    runs = [kmeans(read, COUNT, 9, WIDTH, seed=seed, passes=1) for seed in (1, 1, 2)]
    assert runs[0].centroids.numpy().tobytes() == runs[1].centroids.numpy().tobytes()
    assert not torch.equal(runs[0].centroids, runs[2].centroids)


@pytest.mark.parametrize("seed", range(5))
def test_from_the_same_start_it_ends_where_scikit_learn_ends(seed: int) -> None:
    from sklearn.cluster import KMeans

    features = some_features(seed)
    start = features[torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))[:8]]
    found = lloyd(in_batches(features, 32), COUNT, start, tolerance=1e-18)
    theirs = KMeans(8, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(features.numpy())
    np.testing.assert_array_equal(found.assignments.numpy(), theirs.labels_)
    np.testing.assert_allclose(found.centroids.numpy(), theirs.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-9)


def test_the_start_lies_in_groups_that_lie_apart() -> None:
    """k-means++ draws what is far from all drawn so far: one of each group, and no copy early."""
    places = torch.tensor([0.0, 1000.0, 3000.0], dtype=torch.float64).repeat_interleave(20)
    rows = places + torch.arange(60, dtype=torch.float64) % 4  # five copies of each place
    distances = (rows[:, None] - rows[None, :]).square()
    for seed in range(50):
        drawn = spread_out(distances, 12, torch.Generator().manual_seed(seed))
        assert {row // 20 for row in drawn[:3]} == {0, 1, 2}
        assert len(rows[drawn].unique()) == 12
        every = spread_out(distances, 60, torch.Generator().manual_seed(seed))
        assert sorted(every) == list(range(60))


def test_an_empty_cluster_takes_over_the_farthest_example() -> None:
    features = torch.tensor([[0.0], [1.0], [2.0], [50.0]], dtype=torch.float64)
    start = torch.tensor([[0.5], [-900.0]], dtype=torch.float64)
    found = lloyd(in_batches(features, 2), 4, start, passes=1)
    assert found.assignments.tolist() == [0, 0, 0, 1]
    assert found.centroids.flatten().tolist() == [1.0, 50.0]
    kept = lloyd(in_batches(features, 2), 4, start, passes=1, refill=False)  # as the published k-means does
    assert kept.centroids.flatten().tolist() == [13.25, -900.0]


def test_all_starts_at_one_place_still_give_full_clusters() -> None:
    features = some_features(2)
    found = lloyd(in_batches(features, 30), COUNT, features[:1].repeat(6, 1), passes=20)
    assert int(found.counts.min()) > 0
    assert_true_means(found, features)
    assert len(found.centroids.unique(dim=0)) == 6


def test_the_distance_falls_from_pass_to_pass() -> None:
    told: list[tuple[int, float]] = []
    features = some_features()
    start = features[:10]
    lloyd(in_batches(features, 33), COUNT, start, passes=8, progress=lambda done, inertia: told.append((done, inertia)))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert len(told) > 2
    assert all(later <= earlier for (_, earlier), (_, later) in pairwise(told))


# ---- the file

ORIGIN = Origin(task="rte", train_file="", teacher="abc", layer=3, width=4, max_length=64)
ABOUT = {**asdict(ORIGIN), "algorithm": "kmeans"}


@pytest.fixture
def made() -> Centroids:
    """Three centroids of 5 tokens and width 4."""
    centroids = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    return Centroids(centroids, torch.tensor([2, 1, 1]), dict(ABOUT))


@pytest.fixture
def file(made: Centroids, tmp_path: Path) -> Path:
    """The same, saved."""
    made.save(tmp_path / "memory.safetensors", torch.tensor([0, 0, 1, 2]))
    return tmp_path / "memory.safetensors"


def test_the_file_is_one_safetensors_file_that_says_what_it_is(made: Centroids, file: Path) -> None:
    from safetensors import safe_open

    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with safe_open(file, framework="pt") as opened:
        assert sorted(opened.keys()) == ["assignments", "centroids", "counts"]
        assert torch.equal(opened.get_tensor("centroids"), made.values)
        assert opened.get_tensor("assignments").tolist() == [0, 0, 1, 2]
        facts = json.loads(opened.metadata()["kdbert"])
        assert facts["about"] == ABOUT
    again = Centroids.load(file)
    assert torch.equal(again.values, made.values)
    assert again.counts.tolist() == [2, 1, 1]
    assert (again.about, again.fingerprint) == (ABOUT, made.fingerprint)


def test_the_same_centroids_are_the_same_file_to_the_byte(made: Centroids, tmp_path: Path) -> None:
    """A recipe's memory.file counts by what is in the file, and train-memory --output compares files."""
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        made.save(file, torch.tensor([0, 0, 1, 2]))
    assert len({file.read_bytes() for file in files}) == 1


def cut(content: bytes) -> bytes:
    """The second half is gone."""
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One bit of a centroid differs."""
    place = content.index(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).numpy().tobytes()) + 17
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def pickled(content: bytes) -> bytes:
    """The published `memory.pt` is a pickled module."""
    return pickle.dumps(Bomb())


def foreign(content: bytes) -> bytes:
    """A model's weights."""
    from safetensors.torch import save

    return save({"centroids": torch.zeros(3, 5, 4)}, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, "cannot be read"),
        (flip, "is damaged"),
        (pickled, "cannot be read"),
        (foreign, "is not a memory file"),
        (lambda content: b"", "cannot be read"),
        (lambda content: b"{}", "cannot be read"),
    ],
    ids=["cut", "flip", "pickled", "foreign", "empty", "text"],
)
def test_a_file_that_is_not_whole_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes], told: str
) -> None:
    monkeypatch.chdir(file.parent)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError) as error:
        Centroids.load(file)
    assert str(file) in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_whichever_bit_is_wrong_no_wrong_centroid_is_read(made: Centroids, file: Path) -> None:
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found = Centroids.load(file)
        except UserError:
            continue
        assert torch.equal(found.values, made.values), place


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"teacher": "def"}, "another teacher (fingerprint def, this run's is abc)"),
        ({"task": "mrpc"}, "task 'mrpc', not 'rte'"),
        ({"layer": 2}, "the teacher's layer 2, not 3"),
        ({"width": 8}, "a teacher of width 8, not 4"),
        ({"max_length": 32}, "--max-length 32, not 64"),
        ({"algorithm": "legacy"}, "variant original"),
        ({"task": "mrpc", "layer": 2}, "task 'mrpc', not 'rte', of the teacher's layer 2"),
    ],
    ids=str,
)
def test_a_memory_of_something_else_is_refused_with_what_differs(
    made: Centroids, there: dict[str, object], told: str
) -> None:
    other = Centroids(made.values, made.counts, {**ABOUT, **there})
    with pytest.raises(UserError) as error:
        other.check("m.safetensors", ORIGIN, "corrected")
    assert told in str(error.value)
    assert "m.safetensors" in str(error.value)


def test_a_memory_that_fits_is_taken_and_one_too_short_is_not(made: Centroids) -> None:
    made.check("m", ORIGIN, "corrected", 5)
    Centroids(made.values, made.counts, {**ABOUT, "algorithm": "legacy"}).check("m", ORIGIN, "original")
    with pytest.raises(UserError, match="5 tokens long, the longest training example has 6"):
        made.check("m", ORIGIN, "corrected", 6)


# ---- found or built

SECTION = {"centroids": 5, "algorithm": "kmeans", "passes": 20, "batch_size": 1, "seed": 1}
WANTED = Description(**{**asdict(ORIGIN), "width": 3}, data="d", precision="fp32", **SECTION)


def build(path: Path, features: torch.Tensor, wanted: Description = WANTED, size: int = 32) -> Centroids:
    """What a run does: features of four tokens and width 3."""
    return find_or_build(
        path, wanted, lambda: in_batches(features, size), examples=COUNT, length=4, accelerator=make_accelerator()
    )


def test_a_file_is_built_once_and_then_found(tmp_path: Path) -> None:
    features, file = some_features().float(), tmp_path / "runs" / "m.safetensors"
    built = build(file, features)
    assert built.values.shape == (5, 4, 3)
    assert built.about["examples"] == COUNT
    expected = kmeans(in_batches(features, 32), COUNT, 5, WIDTH, seed=1, passes=20)
    assert torch.equal(built.values.flatten(1), expected.centroids)
    assert torch.equal(built.counts, expected.counts)
    content = file.read_bytes()
    assert torch.equal(build(file, torch.zeros(COUNT, WIDTH)).values, built.values)  # no feature is read
    file.write_bytes(content[:-1])
    build(file, features)
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped", 15)], ids=["Ctrl-C", "SIGTERM"])
def test_of_a_build_that_is_interrupted_nothing_is_kept(tmp_path: Path, stop: BaseException) -> None:
    def read() -> Iterator[FeatureBatch]:
        yield FeatureBatch(torch.arange(2), torch.zeros(2, WIDTH))
        raise stop

    file = tmp_path / "m.safetensors"
    with pytest.raises(Interrupted) as error:
        find_or_build(file, WANTED, lambda: read, examples=COUNT, length=4, accelerator=make_accelerator())
    assert error.value.exit_code == (143 if isinstance(stop, Interrupted) else 130)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write a memory"):
        build(tmp_path / "runs" / "m.safetensors", some_features().float())


def test_every_way_of_making_centroids_is_in_their_description() -> None:
    """Two files that may differ must not have one name."""
    assert set(SECTION) == set(MemorySection.model_fields) - {"file", "train"}
    other = {**dict.fromkeys(("task", "train_file", "teacher", "data", "precision"), "other"), "algorithm": "legacy"}
    names = {
        centroids_path("runs", "t", replace(WANTED, **{field.name: other.get(field.name, 77)}))
        for field in fields(WANTED)
    }
    assert len({*names, centroids_path("runs", "t", WANTED)}) == len(fields(WANTED)) + 1
