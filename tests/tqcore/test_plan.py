"""What a plan is: its description, the rotations of its segments, and what a plan that only centres has not."""

import numpy as np
import pytest

from tqcore.plan import Plan, Segment
from tqcore.rotation import HadamardRotation

D = 96
GOOD = {"segments": [[56, 2.5], [8, 1.0]], "forward": True, "backward": True}


def plan_of(segments, seed=3):
    """A plan whose map keeps the first dimensions as they are."""
    dims = sum(s.dims for s in segments)
    return Plan(
        np.zeros(D, np.float32), segments, seed, 2, np.ones(dims, np.float32), np.eye(D, dims, dtype="f4")
    )


def test_shapes_of_right_descriptions():
    matrix = (D, 64)
    whole = {"mean": (D,), "deviations": (64,), "forward": matrix, "backward": matrix}
    assert Plan.shapes(D, GOOD) == whole
    whole.pop("backward")
    assert Plan.shapes(D, GOOD | {"backward": False}) == whole
    centred = {"segments": [[D, 2.0]], "forward": False, "backward": False}
    assert Plan.shapes(D, centred) == {"mean": (D,)}
    full = {"segments": [[8, 1]] * (D // 8), "forward": True, "backward": False}
    assert Plan.shapes(D, full)["forward"] == (D, D)


OBJECT = "must have segments, forward and backward"
COUNT = "must be a list of 1 to 96 segments"
RATES = r"must hold \[dims >= 8, rate\]"
COVER = "must cover at most 96 dimensions"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"extra": 1}, OBJECT),
        ({"segments": []}, COUNT),
        ({"segments": ((56, 2.5),)}, COUNT),
        ({"segments": [[8, 1.0]] * 97}, COUNT),
        ({"segments": [(56, 2.5)]}, RATES),
        ({"segments": [[56, 2.5, 1.0]]}, RATES),
        ({"segments": [[56]]}, RATES),
        ({"segments": [[7, 2.5]]}, RATES),
        ({"segments": [[56.0, 2.5]]}, RATES),
        ({"segments": [[56, 2.2]]}, RATES),
        ({"segments": [[56, float("nan")]]}, RATES),
        ({"segments": [[56, True]]}, RATES),
        ({"segments": [[56, [2.5]]]}, RATES),
        ({"segments": [[56, 2.5], [41, 1.0]]}, COVER),
        ({"segments": [[64, 2.0]], "forward": False, "backward": False}, COVER),
        ({"segments": [[56, 2.5], [40, 1.0]], "forward": False, "backward": False}, COVER),
        ({"forward": 1}, "plan.forward must be true or false"),
        ({"backward": None}, "plan.backward must be true or false"),
        ({"segments": [[D, 2.0]], "forward": False}, "plan.backward needs plan.forward"),
    ],
)
def test_wrong_descriptions_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Plan.shapes(D, GOOD | change)


@pytest.mark.parametrize("description", [None, [], "plan", {"segments": [[D, 2.0]]}])
def test_what_is_no_description_is_refused(description):
    with pytest.raises(ValueError, match=OBJECT):
        Plan.shapes(D, description)


def test_segments_are_rotated_from_streams_in_their_order():
    """The streams are part of the format: segment i of a plan is rotated from stream 16 + i of its seed."""
    plan = plan_of((Segment(40, 2.5), Segment(16, 2.0), Segment(8, 1.0)))
    z = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    parts = [slice(0, 40), slice(40, 56), slice(56, 64)]
    want = [
        HadamardRotation(part.stop - part.start, plan.seed, 16 + i).rotate(z[:, part])
        for i, part in enumerate(parts)
    ]
    np.testing.assert_array_equal(plan.rotate(z), np.hstack(want))
    np.testing.assert_allclose(plan.unrotate(plan.rotate(z)), z, atol=1e-5)


def test_a_plan_that_only_centres_has_no_matrix():
    plan = Plan(np.zeros(D, np.float32), (Segment(D, 2.0),), 0, 2)
    assert plan.centres_only
    with pytest.raises(ValueError, match="has no matrix"):
        _ = plan.encode_matrix
    with pytest.raises(ValueError, match="has no deviations"):
        plan.weighted(np.zeros((1, D), np.float32))


def test_repr():
    assert repr(Plan(np.zeros(D, np.float32), (Segment(D, 2.5),), 0, 2)) == "Plan(centred, 2.5 bits)"
    plan = plan_of((Segment(40, 2.5), Segment(16, 1.0)))
    assert repr(plan) == "Plan(96 -> 56 dimensions: 40 x 2.5, 16 x 1 bits)"
