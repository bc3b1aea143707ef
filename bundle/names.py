"""Names that Kaggle takes: of users, kernels and datasets. A build and `init` go by the same rules.

Standard library only.
"""

from __future__ import annotations

import re
from collections import defaultdict

from kernel.errors import InputError
from kernel.manifest.rules import COMPETITION_PATTERN
from kernel.manifest.types import KernelIdentity, Manifest

#: The owner that weights_manifest.json names until its user fills in an own one.
PLACEHOLDER_OWNER = "your-kaggle-name"
#: The owners that examples name.
PLACEHOLDER_OWNERS = (PLACEHOLDER_OWNER, "you", "your-name", "yourname", "username", "user-name", "owner")
DEFAULT_DATASET_ID = f"{PLACEHOLDER_OWNER}/mmdet-pure-python-wheels"
#: A kernel's title, as Kaggle has it.
KERNEL_TITLE_LENGTHS = range(5, 51)
#: The shortest slug of a kernel.
SHORTEST_SLUG = 5
USER_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*"
DATASET_SLUG_PATTERN = r"[a-z0-9][a-z0-9-]{4,48}[a-z0-9]"
#: What becomes another character before a slug is made of a title.
_ENTITY = re.compile(r"&(?:#x?)?\w+;", re.ASCII)


def slug_of_title(title: str) -> str:
    """The slug that Kaggle makes of an ASCII title: lower case, hyphens for everything that is no letter or digit."""
    plain = re.sub(r"(?<=[0-9]),(?=[0-9])", "", title.lower())  # 1,000 is one word
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def owner_of(name: str) -> str:
    """The owner in "owner/slug"; Kaggle does not tell small letters from capitals there."""
    return name.split("/")[0].lower()


def user_problem(user: str) -> str | None:
    """Why `user` is no Kaggle user name; None where it is one."""
    if re.fullmatch(USER_PATTERN, user) and user.lower() not in PLACEHOLDER_OWNERS:
        return None
    what = "stands for a name" if user.lower() in PLACEHOLDER_OWNERS else "is no user name"
    return f"{user!r} {what}: give your Kaggle user name, the last part of your page's address, kaggle.com/NAME"


def title_problem(title: str) -> str | None:
    """Why Kaggle would not take a kernel's title, or make a slug of it that can be foreseen; None where it does."""
    lowest, highest = KERNEL_TITLE_LENGTHS[0], KERNEL_TITLE_LENGTHS[-1]
    odd = next((character for character in title if not character.isascii() or not character.isprintable()), None)
    entity = _ENTITY.search(title)
    if odd is not None:
        return f"{title!r} holds {odd!r}, for which Kaggle's slug cannot be foreseen: write it in printable ASCII"
    if entity is not None:
        return f"{title!r} holds {entity[0]!r}, which Kaggle reads as another character: leave it out"
    if len(title) not in KERNEL_TITLE_LENGTHS or len(title.strip()) < lowest:
        return f"{title!r} has {len(title)} characters, Kaggle takes {lowest} to {highest}: choose another"
    if len(slug_of_title(title)) < SHORTEST_SLUG:
        return (
            f"{title!r} has the slug {slug_of_title(title)!r}, of which Kaggle takes {SHORTEST_SLUG} characters or "
            "more: give it more letters or digits"
        )
    return None


def dataset_problem(dataset: str) -> str | None:
    """Why Kaggle would make no dataset `dataset`; None where it would."""
    if re.fullmatch(f"{USER_PATTERN}/{DATASET_SLUG_PATTERN}", dataset):
        return None
    return (
        f"{dataset!r} is no Kaggle dataset: allowed is owner/slug, your user name, a slash, and 6 to 50 small letters, "
        f"digits and inner hyphens, like {DEFAULT_DATASET_ID}"
    )


def competition_problem(competition: str) -> str | None:
    """Why `competition` is no competition's slug; None where it may be one."""
    if re.fullmatch(COMPETITION_PATTERN, competition):
        return None
    return f"{competition!r} is no competition: give its slug, the last part of kaggle.com/competitions/SLUG"


def kernel_problems(identity: KernelIdentity) -> list[str]:
    """What is wrong with the kernel's names."""
    slug = identity.id.split("/")[1]
    problem = title_problem(identity.title)
    if problem is not None:
        return [f"kernel.title {problem}, and the slug of `kernel.id` like it"]
    if slug_of_title(identity.title) != slug:
        return [
            f"kernel.title {identity.title!r} has the slug {slug_of_title(identity.title)!r}, kernel.id says {slug!r}: "
            "Kaggle would go by one of them; make them agree in the manifest"
        ]
    return []


def dataset_problems(manifest: Manifest) -> list[str]:
    """What is wrong with the names of the datasets that the kernel's owner has, and a build makes."""
    owner = owner_of(manifest.kernel.id)
    weights = [name for name in manifest.all_weight_datasets if owner_of(name) == owner]
    own = [*weights, *([manifest.wheels_dataset] if owner_of(manifest.wheels_dataset) == owner else [])]
    problems = [problem for name in dict.fromkeys(own) if (problem := dataset_problem(name)) is not None]
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in own:
        spellings[name.lower()].append(name)
    for names in spellings.values():
        if len(set(names)) > 1:
            problems.append(f"{' and '.join(dict.fromkeys(names))} are one dataset to Kaggle: spell it in one way")
        elif len(names) > 1:
            problems.append(f"{names[0]} is to hold the wheels and weights as well: give the weights another dataset")
    return problems


def refuse_names(manifest: Manifest) -> None:
    """Refuse a manifest with names of the kernel, or of its owner's datasets, that Kaggle would not take.

    Raises:
        InputError: lists them.
    """
    problems = [*kernel_problems(manifest.kernel), *dataset_problems(manifest)]
    if problems:
        raise InputError("\n".join(problems))
