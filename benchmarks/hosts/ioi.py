"""Networks that name the indirect object: "Ann and Bob went to the park. Bob gave a ring to" is followed by "Ann"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.sites import find_sites
from sparsefleet.workers.activations.taps import Tap, record
from torch import Tensor, nn

FIRST, SECOND, AGAIN, OBJECT, PLACE = -1, -2, -3, -4, -5
"""Places in a template, among token ids. The first two hold the indirect object and the subject in either order."""
TEMPLATES = (
    "After {A} and {B} got to the {P}, {S} handed the {O} to",
    "While {A} and {B} were at the {P}, {S} gave a {O} to",
    "Yesterday {A} met {B} near the {P}, and {S} offered the {O} to",
    "{A} waited in the {P} with {B}. Then {S} passed the {O} to",
)
NAMES = (
    "Mary", "John", "Tom", "James", "Anna", "Kate", "Sarah", "David",
    "Mark", "Alice", "Peter", "Emma", "Paul", "Jane", "Simon", "Laura",
    "Henry", "Lucy", "George", "Helen", "Robert", "Maria", "Frank", "Susan",
)  # fmt: skip
OBJECTS = ["book", "ring", "key", "letter", "ball", "hat", "cup", "basket"]
PLACES = ["park", "school", "library", "station", "garden", "office", "museum", "church"]
AT_ONCE = 50
HEAD = Tap("lm_head")


@dataclass(frozen=True)
class Prompts:
    """Attributes of prompts: [n, 6] int64 indirect object, subject, order (0: indirect object first), template, object,
    place."""

    values: Tensor

    @property
    def attributes(self) -> Tensor:
        """[n, 3] those that a dictionary is made for."""
        return self.values[:, :3]

    def counterfactual(self, attribute: int, names: int, generator: torch.Generator) -> Prompts:
        """The same prompts with another value of one attribute; a new name is one that was not in the prompt."""
        changed = self.values.clone()
        if attribute == 2:
            changed[:, 2] = 1 - changed[:, 2]
        else:
            used = torch.zeros(len(changed), names).scatter_(1, changed[:, :2], 1)
            changed[:, attribute] = torch.multinomial(1 - used, 1, generator=generator)[:, 0]
        return Prompts(changed)


@dataclass(frozen=True)
class Seen:
    """What a network made of prompts."""

    rows: Tensor
    """[sites, n, D] at the last token."""
    best: Tensor
    """[n] most likely next token."""
    names: Tensor
    """[n, names] logits of names as the next token."""

    def difference(self, prompts: Prompts) -> Tensor:
        """[n] logit of the indirect object minus that of the subject."""
        io, s = (self.names.gather(1, prompts.values[:, at : at + 1])[:, 0] for at in (0, 1))
        return io - s


class Host:
    """A network, how prompts are spelled for it, and the places where it is looked at."""

    def __init__(self, network: Any, templates: list[list[int]], names: Tensor, fillings: list[Tensor]) -> None:
        """`fillings`: token ids of objects and of places."""
        self.network, self.templates, self.names, self.fillings = network.eval(), templates, names, fillings
        self.sites = [site.tap for site in find_sites(network, ["residual"], list(range(self.layers)))]

    @property
    def layers(self) -> int:
        return int(self.network.config.num_hidden_layers)

    def draw(self, n: int, generator: torch.Generator) -> Prompts:
        """Random prompts."""
        pairs = torch.rand(n, len(self.names), generator=generator).argsort(1)[:, :2]
        sizes = (2, len(self.templates), *(len(f) for f in self.fillings))
        rest = [torch.randint(0, size, (n, 1), generator=generator) for size in sizes]
        return Prompts(torch.cat([pairs, *rest], 1))

    def tokens(self, values: Tensor) -> Tensor:
        """[n, length] for prompts of one template."""
        io, s, order = values[:, 0], values[:, 1], values[:, 2]
        words = {
            FIRST: self.names[torch.where(order == 0, io, s)],
            SECOND: self.names[torch.where(order == 0, s, io)],
            AGAIN: self.names[s],
        } | {kind: f[values[:, 4 + i]] for i, (kind, f) in enumerate(zip((OBJECT, PLACE), self.fillings))}
        template = self.templates[int(values[0, 3])]
        return torch.stack([words[t] if t < 0 else torch.full_like(io, t) for t in template], 1)

    def batches(self, prompts: Prompts) -> Iterator[tuple[Tensor, Tensor]]:
        """(which prompts, their tokens), a template at a time."""
        for template in range(len(self.templates)):
            for at in (prompts.values[:, 3] == template).nonzero()[:, 0].split(AT_ONCE):
                if len(at):
                    yield at, self.tokens(prompts.values[at])

    def record(self, ids: Tensor) -> dict[Tap, Tensor]:
        """What passes at all sites, and the logits."""
        forward = lambda: self.network(input_ids=ids, use_cache=False, logits_to_keep=1)  # noqa: E731
        return record(self.network, [*self.sites, HEAD], forward).activations

    def see(self, prompts: Prompts) -> Seen:
        """The network as it is."""
        n, dim = len(prompts.values), int(self.network.config.hidden_size)
        rows, best = torch.zeros(len(self.sites), n, dim), torch.zeros(n, dtype=torch.int64)
        logits = torch.zeros(n, len(self.names))
        for at, ids in self.batches(prompts):
            taken = self.record(ids)
            rows[:, at] = torch.stack([taken[tap][:, -1] for tap in self.sites])
            found = taken[HEAD][:, -1]
            best[at], logits[at] = found.argmax(1), found[:, self.names]
        return Seen(rows, best, logits)

    @torch.no_grad()
    def prefixes(self, prompts: Prompts) -> list[tuple[Tensor, Any]]:
        """Of every batch which prompts, and the keys and values of all tokens but the last: what changes at the last
        token changes nothing there."""
        made: list[tuple[Tensor, Any]] = []
        for at, ids in self.batches(prompts):
            past = self.network(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
            made.append((at, past))
        return made

    @torch.no_grad()
    def edited(self, prefixes: list[tuple[Tensor, Any]], site: int, rows: Tensor) -> Seen:
        """The network with `rows` [n, D] in the place of the last token's activations at a site: only the layers after
        it are worked, with rows for embeddings, which a Llama hands to its first layer as they are."""
        n = sum(len(at) for at, _ in prefixes)
        best, logits = torch.zeros(n, dtype=torch.int64), torch.zeros(n, len(self.names))
        inner = self.network.model
        layers = inner.layers
        inner.layers = layers[site + 1 :]
        try:
            for at, past in prefixes:
                given = rows[at][:, None].float()
                found = self.network(inputs_embeds=given, past_key_values=past, use_cache=True, logits_to_keep=1).logits
                for layer in past.layers[site + 1 :]:
                    layer.crop(-1)
                best[at], logits[at] = found[:, -1].argmax(1), found[:, -1][:, self.names]
        finally:
            inner.layers = layers
        return Seen(torch.zeros(0), best, logits)


def toy(seed: int, names: int, steps: int = 500) -> Host:
    """A Llama of three layers (D = 64, 4 heads) that learned `BOS N1 AND N2 WENT S GAVE TO` → indirect object."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=names + 5, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=names, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    bos, both, went, gave, to = range(names, names + 5)
    template = [bos, FIRST, both, SECOND, went, AGAIN, gave, to]
    one = torch.zeros(1, dtype=torch.int64)
    host = Host(LlamaForCausalLM(config), [template], torch.arange(names), [one, one])
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(host.network.parameters(), lr=2e-3)
    host.network.train()
    for _ in range(steps):
        prompts = host.draw(256, generator)
        logits = host.network(input_ids=host.tokens(prompts.values), use_cache=False).logits[:, -1]
        loss = nn.functional.cross_entropy(logits, prompts.values[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    host.network.eval()
    return host


def smollm2() -> Host:
    """SmolLM2-135M-Instruct with the templates above and the names, objects and places that are one token."""
    path = hosts.find_model("input:smollm2")
    tokenizer = hosts.load_tokenizer(path)

    def single(words: Sequence[str]) -> Tensor:
        ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        return torch.tensor([i[0] for i in ids if len(i) == 1])

    names, objects, places = single(NAMES), single(OBJECTS), single(PLACES)
    spelled = {"{A}": FIRST, "{B}": SECOND, "{S}": AGAIN, "{O}": OBJECT, "{P}": PLACE}
    templates: list[list[int]] = []
    for text in TEMPLATES:
        tokens: list[int] = []
        # A leading space, as the names of the other places have it.
        for i, word in enumerate(f" {text}".replace(",", " ,").replace(".", " .").split()):
            mark = word if word in spelled else None
            piece = word if word in ",." else f" {word}" if i or mark else word
            tokens += [spelled[mark]] if mark else tokenizer(piece, add_special_tokens=False)["input_ids"]
        templates.append(tokens)
    return Host(hosts.load_network(path, torch.device("cpu")), templates, names, [objects, places])
