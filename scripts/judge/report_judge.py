"""How good the judge is on concepts that it has never seen; prints the tables of docs/evaluation.md.

`python scripts/judge/report_judge.py` needs the work folder of `scripts/emoji`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pictures import STYLES, Pictures, load_pictures, plain

from fera.evaluation import Judge, load_judge
from fera.features.judge import Look


def confusion(look: Look, pictures: Pictures) -> torch.Tensor:
    """Share of each style's pictures (rows) that the judge takes for each style (columns)."""
    shares = torch.zeros(len(STYLES), len(STYLES))
    for style in range(len(STYLES)):
        taken = look.styles[pictures.styles == style].argmax(dim=1)
        shares[style] = torch.bincount(taken, minlength=len(STYLES)) / len(taken)
    return shares


def retrieval(look: Look, pictures: Pictures) -> tuple[float, float, float]:
    """Find a concept's picture in another style, over all ordered pairs of styles.

    Returns:
        How often it comes first, how often it is among five, and the mean number of candidates.
    """
    names = sorted(name for name, rows in pictures.by_concept().items() if len(rows) == len(STYLES))
    rows = torch.tensor([pictures.by_concept()[name] for name in names])  # one row a concept, one column a style
    right = torch.arange(len(names))[:, None]
    first, five = [], []
    for query in range(len(STYLES)):
        for gallery in set(range(len(STYLES))) - {query}:
            similarities = look.embeddings[rows[:, query]] @ look.embeddings[rows[:, gallery]].T
            order = similarities.argsort(dim=1, descending=True)
            first.append((order[:, :1] == right).any(dim=1).float().mean())
            five.append((order[:, :5] == right).any(dim=1).float().mean())
    return float(torch.stack(first).mean()), float(torch.stack(five).mean()), len(names)


def report(judge: Judge, pictures: Pictures, split: str) -> None:
    """Print style accuracy and cross-style retrieval."""
    look = judge.look(plain(pictures.images).split(512))
    shares = confusion(look, pictures)
    print(f"\n{judge.name} on {split} concepts, {len(pictures.names)} pictures\n")
    print("| style | pictures | right style | most taken for else |\n|---|---|---|---|")
    for style, name in enumerate(STYLES):
        others = shares[style].clone()
        others[style] = -1
        wrong = int(others.argmax())
        count = int((pictures.styles == style).sum())
        print(f"| {name} | {count} | {shares[style, style]:.1%} | {STYLES[wrong]} ({others[wrong]:.1%}) |")
    accuracy = (look.styles.argmax(dim=1) == pictures.styles).float().mean()
    first, five, candidates = retrieval(look, pictures)
    print(f"\nstyle accuracy over all pictures: {accuracy:.1%}")
    print(f"cross-style retrieval among {candidates} concepts: top-1 {first:.1%}, top-5 {five:.1%}")


def main() -> None:
    """Report on a split."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder of scripts/emoji")
    parser.add_argument("--judge", type=Path, help="weights; those that come with fera when left out")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="which concepts")
    args = parser.parse_args()
    report(load_judge(args.judge), load_pictures(args.work, [args.split]), args.split)


if __name__ == "__main__":
    main()
