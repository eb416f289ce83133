"""Train the judge of `fera evaluate` on real emoji pictures of the train and validation concepts.

`python scripts/judge/train_judge.py` writes `src/fera/features/judge.safetensors`; it takes some ten minutes on one
core, and needs the set archives that `scripts/emoji/sets.py` fetches. No generated picture and no test concept is
ever shown to it. `--hold-out` trains on the train concepts alone, to choose a recipe on the validation ones.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from pictures import STYLES, Pictures, load_pictures, plain, vary
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fera.evaluation import load_judge
from fera.features.judge_network import JudgeNetwork

CONCEPTS = 64  # of a batch, each in two styles
TEMPERATURE = 0.1  # of the contrast between concepts
PEAK_RATE = 4e-3
MARGIN = 1.15  # emoji of test concepts stay within 1.07, patches of a photograph come to 1.23


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """InfoNCE, both ways: row i of one belongs to row i of the other.

    Args:
        first: embeddings of length 1, shape (B, D).
        second: of the same concepts in other styles, shape (B, D).

    Returns:
        Scalar.

    Source:
        van den Oord et al., arXiv 1807.03748; both ways as in CLIP, arXiv 2103.00020.
    """
    similarities = first @ second.T / TEMPERATURE
    right = torch.arange(len(first))
    return (functional.cross_entropy(similarities, right) + functional.cross_entropy(similarities.T, right)) / 2


def draw_pairs(rows: list[list[int]], draws: random.Random) -> tuple[list[int], list[int]]:
    """Two pictures, of different styles, of each of some concepts."""
    pairs = [draws.sample(candidates, 2) for candidates in draws.sample(rows, CONCEPTS)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def train(pictures: Pictures, steps: int, seed: int) -> JudgeNetwork:
    """Train a network.

    Args:
        pictures: to learn from.
        steps: of the optimizer.
        seed: of everything that is drawn.
    """
    torch.manual_seed(seed)
    draws, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    network = JudgeNetwork(len(STYLES)).train()
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    rows = [candidates for candidates in pictures.by_concept().values() if len(candidates) > 1]
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        for step in range(steps):
            first, second = draw_pairs(rows, draws)
            chosen = torch.tensor(first + second)
            batch = vary(pictures.images[chosen], generator)
            _, logits, embeddings = network(batch)
            style_loss = functional.cross_entropy(logits, pictures.styles[chosen], label_smoothing=0.05)
            concept_loss = contrast(embeddings[:CONCEPTS], embeddings[CONCEPTS:])
            optimizer.zero_grad()
            (style_loss + concept_loss).backward()
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1)
            if step % 50 == 0 or step == steps - 1:
                progress.console.print(f"step {step}: style {style_loss:.3f}, concept {concept_loss:.3f}")
    return network.eval()


@torch.no_grad()
def look(network: JudgeNetwork, pictures: Pictures) -> tuple[Tensor, Tensor, Tensor]:
    """Features, style logits and concept embeddings of all pictures."""
    parts = [network(plain(batch)) for batch in pictures.images.split(256)]
    features, logits, embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, logits, embeddings


def fit_style_head(network: JudgeNetwork, pictures: Pictures, seed: int) -> None:
    """Fit the style head anew to the finished trunk, every style counting the same.

    While the trunk learns, the head sees few pictures of the small sets and chases moving features. Here it sees all
    pictures, as they are and varied twice, and converges.

    Args:
        network: changed in place.
        pictures: to learn from.
        seed: of the variations.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        copies = [look(network, pictures)[0]]
        for _ in range(2):
            parts = [network(vary(batch, generator))[0] for batch in pictures.images.split(256)]
            copies.append(torch.cat(parts))
    features, styles = torch.cat(copies), pictures.styles.repeat(len(copies))
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)
    standard = (features - mean) / deviation
    share = torch.bincount(styles, minlength=len(STYLES)).float()
    head = torch.nn.Linear(features.shape[1], len(STYLES))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(standard), styles, weight=len(styles) / (len(STYLES) * share))
        value = value + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    print(f"style head: {optimizer.step(loss).item():.3f} before, {loss().item():.3f} fitted")
    with torch.no_grad():
        network.style.weight.copy_(head.weight / deviation)
        network.style.bias.copy_(head.bias - head.weight @ (mean / deviation))


def save(network: JudgeNetwork, pictures: Pictures, path: Path) -> None:
    """Write the network in half precision, with what its features look like in each style.

    `feature_mean` and `feature_std` (S, 224) describe a style's features. `feature_reach` (S,) is the median distance
    of its pictures from the mean, in deviations, and some more: a folder whose median lies farther out holds
    something else.
    """
    features, _, _ = look(network, pictures)
    means, deviations, reaches = [], [], []
    for style in range(len(STYLES)):
        own = features[pictures.styles == style]
        mean, deviation = own.mean(dim=0), own.std(dim=0).clamp(min=1e-3)
        distances = ((own - mean) / deviation).square().mean(dim=1).sqrt()
        means.append(mean)
        deviations.append(deviation)
        reaches.append(distances.median() * MARGIN)
    tensors = {name: value.half() for name, value in network.state_dict().items() if value.is_floating_point()}
    described = {
        "feature_mean": torch.stack(means),
        "feature_std": torch.stack(deviations),
        "feature_reach": torch.stack(reaches),
    }
    tensors |= {name: value.half() for name, value in described.items()}
    metadata = {"format": "fera-judge-1", "styles": json.dumps(STYLES), "temperature": str(TEMPERATURE)}
    unfinished = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished, metadata)
    unfinished.replace(path)


def main() -> None:
    """Train, save, say how large it is."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/emoji"), help="work folder of scripts/emoji")
    parser.add_argument("--output", type=Path, default=Path("src/fera/features/judge.safetensors"), help="the file")
    parser.add_argument("--steps", type=int, default=1800, help="of the optimizer")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--hold-out", action="store_true", help="leave the validation concepts out")
    parser.add_argument("--refit", action="store_true", help="keep the output's trunk, fit its style head alone")
    args = parser.parse_args()
    pictures = load_pictures(args.work, ["train"] if args.hold_out else ["train", "validation"])
    network = load_judge(args.output).network if args.refit else train(pictures, args.steps, args.seed)
    fit_style_head(network, pictures, args.seed)
    save(network, pictures, args.output)
    size = sum(parameter.numel() for parameter in network.parameters())
    print(f"{args.output}: {size:,} parameters, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
