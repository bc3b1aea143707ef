"""The plane that is taken of an image of many dimensions, and what is told of it."""

from __future__ import annotations

import pytest

from kernel.errors import InputError
from kernel.images.planes import PlaneChoice, choice_of_texts, choose_planes, count_frames


@pytest.mark.parametrize(
    ("axes", "sizes", "choice", "places", "told"),
    [
        ("", (), PlaneChoice(), [()], []),
        ("T", (1,), PlaneChoice(), [(0,)], []),
        ("TCZ", (3, 2, 5), PlaneChoice(), [(0, 0, 2)], ["frame 0 of 3", "channel 0 of 2", "z 2 of 5"]),
        ("TCZ", (3, 2, 5), PlaneChoice(1, 4, 2), [(2, 1, 4)], []),
        ("ZC", (2, 4), PlaneChoice(channel=3, z="max"), [(0, 3), (1, 3)], []),
        ("Z", (4,), PlaneChoice(z="middle"), [(2,)], []),
        ("Q", (6,), PlaneChoice(), [(0,)], ["the first of 6 along its axis Q"]),
        ("Q", (6,), PlaneChoice(frame=4), [(4,)], []),
        ("Q", (6,), PlaneChoice(z="max"), [(each,) for each in range(6)], []),
        ("QI", (2, 3), PlaneChoice(channel=1), [(1, 0)], ["the first of 3 along its axis I"]),
        ("TQ", (2, 3), PlaneChoice(frame=1), [(1, 0)], ["the first of 3 along its axis Q"]),
        ("", (), PlaneChoice(0, "max", "all"), [()], []),
        ("", (), PlaneChoice(0, "middle", 0), [()], []),
    ],
)
def test_what_is_taken(
    axes: str, sizes: tuple[int, ...], choice: PlaneChoice, places: list[tuple[int, ...]], told: list[str]
) -> None:
    planes = choose_planes(axes, sizes, choice)
    assert list(planes.places) == places
    assert all(text in planes.told for text in told) and bool(planes.told) == bool(told)
    assert "\n" not in planes.told


def test_all_frames() -> None:
    every = PlaneChoice(frame="all")
    assert [count_frames(*each, every) for each in (("TC", (7, 2)), ("Q", (5,)), ("", ()))] == [7, 5, 1]
    assert count_frames("T", (7,), PlaneChoice()) == 1
    assert choose_planes("TZ", (7, 3), every, frame=6).places == ((6, 1),)


def test_the_depth_counts_as_frames_where_there_is_no_time() -> None:
    """Fiji calls the frames of sequences and films that it imports slices."""
    every = PlaneChoice(frame="all")
    sized = (("Z", (5,)), ("ZC", (5, 2)), ("TZ", (1, 5)), ("TZ", (2, 5)), ("QZ", (3, 5)))
    assert [count_frames(*each, every) for each in sized] == [5, 5, 1, 2, 3]
    assert [count_frames("Z", (5,), PlaneChoice(z=z, frame="all")) for z in (1, "max", "middle")] == [1] * 3
    for planes in (choose_planes("ZC", (5, 2), every, frame=3), choose_planes("ZC", (5, 2), PlaneChoice(frame=3))):
        assert planes.places == ((3, 0),)
        assert "no time axis" in planes.told and "channel 0 of 2" in planes.told and "\n" not in planes.told
    assert choose_planes("Z", (5,), PlaneChoice(z=1, frame="all")).places == ((1,),)
    with pytest.raises(InputError, match="there is no frame 5: it has 5"):
        choose_planes("Z", (5,), PlaneChoice(frame=5))


def test_a_channel_by_its_name() -> None:
    names = ("DAPI", "Phase")
    assert choose_planes("C", (2,), PlaneChoice("phase"), names).places == ((1,),)
    with pytest.raises(InputError, match="its channels are DAPI, Phase"):
        choose_planes("C", (2,), PlaneChoice("gfp"), names)
    with pytest.raises(InputError, match="have no names"):
        choose_planes("C", (2,), PlaneChoice("gfp"))
    with pytest.raises(InputError, match="no one channel"):
        choose_planes("C", (2,), PlaneChoice("a"), ("a", "A"))


@pytest.mark.parametrize(
    ("names", "asked", "place", "told"),
    [
        (("405", "488", "561"), "488", 1, ""),
        (("405", "488", "561"), "2", 2, ""),
        (("405", "488", "561"), 2, 2, ""),
        (("1", "2", "3"), "2", 1, "channel 1 of 3 by its name 2 is taken"),
        (("1", "2", "3"), "3", 2, ""),
        (("1", "2", "3"), 2, 2, ""),
        (("0", "1", "2"), "2", 2, ""),
        ((), "2", 2, ""),
    ],
)
def test_a_channel_whose_name_is_a_number(names: tuple[str, ...], asked: int | str, place: int, told: str) -> None:
    planes = choose_planes("C", (3,), PlaneChoice(asked), names)
    assert planes.places == ((place,),)
    assert told in planes.told and bool(planes.told) == bool(told)


def test_a_number_that_is_neither_name_nor_index() -> None:
    for asked in ("640", 488, "-1"):
        with pytest.raises(InputError, match=f"no channel {asked}: it has 2, .*; its channels are 405, 488$"):
            choose_planes("C", (2,), PlaneChoice(asked), ("405", "488"))
    with pytest.raises(InputError, match="no one channel '1': its channels are 1, 1"):
        choose_planes("C", (2,), PlaneChoice("1"), ("1", "1"))
    with pytest.raises(InputError, match="no channel GFP: it has 2"):  # names that are more than the channels
        choose_planes("C", (2,), PlaneChoice("GFP"), ("DAPI", "Phase", "GFP"))


@pytest.mark.parametrize(
    ("axes", "sizes", "choice", "told"),
    [
        ("C", (3,), PlaneChoice(channel=3), "no channel 3: it has 3, counted from 0"),
        ("T", (3,), PlaneChoice(z=1), "no z 1: it has one"),
        ("", (), PlaneChoice(frame=1), "no frame 1: it has one"),
    ],
)
def test_what_an_image_has_not(axes: str, sizes: tuple[int, ...], choice: PlaneChoice, told: str) -> None:
    with pytest.raises(InputError) as error:
        choose_planes(axes, sizes, choice)
    assert told in str(error.value)


def test_texts_of_a_command_line() -> None:
    assert choice_of_texts("1", "max", "all") == PlaneChoice("1", "max", "all")
    assert choice_of_texts(" GFP ", "12", None) == PlaneChoice("GFP", 12, None)
    for texts, told in (
        ((None, "top", None), "z 'top': give an index, counted from 0, or max or middle"),
        ((None, None, "max"), "frame 'max'"),
        ((None, "-1", None), "z -1"),
        ((None, "1.5", None), "z '1.5'"),
    ):
        with pytest.raises(InputError) as error:
            choice_of_texts(*texts)
        assert told in str(error.value)
