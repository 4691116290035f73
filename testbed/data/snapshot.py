"""Snapshot: what a token knew of its past must travel, for its name alone tells nothing.

The front half of a sequence has sections. Each begins with one token SET(j, a) for each of J registers, which thereby
hold one of V values each; then come fillers, and among them one mark, a name that occurs once, at least `lead` tokens
behind the section's SETs. The back half asks: a token Q(m, j), and behind it the value that register j held where mark
m stood. So a mark's K and V in the second layer must carry J·log2 V bits that stood `lead` tokens before it or more;
its first layer's K and V, which follow from its name, carry none of them. There is one mark a section, asked for once a
register: with two, the answer for one gives the other away to whoever knows that they are neighbours.

Over V sections a register takes each value once, in random order, so that SETs alone do not tell which value is
likelier; but whoever counts the answers so far guesses the next one in 0.44 instead of 0.25 (twelve sections, four
values). It is not proven that token ids cannot solve this in deeper models: they hold all that the answer depends on.

In contexts shorter than the whole, as in a warm start, sections are 2, 4, 8 … tokens long, drawn sequence by sequence,
up to an eighth of the context, with leads of a quarter of that, and values are drawn independently: where each of few
sections has another value, what has not been answered yet is known by elimination, and that was learned instead.

Token ids: fillers, SETs register by register, values, marks, queries mark by mark. Only answers count. An answer's
evidence is where its mark stands.
"""

import numpy as np

from testbed.config.data import SNAPSHOT_FILLERS, short_section, snapshot_vocabulary
from testbed.data.batch import Batch, Row, Split, digest_of, stack

__all__ = ["Snapshot"]


class Snapshot:
    """Batches as a function of (seed, split, step) and of nothing else."""

    def __init__(
        self, *, seed: int, registers: int, values: int, section: int, lead: int, marks: int, context: int
    ) -> None:
        """`marks`: names, of which a sequence has one for each of its sections."""
        self._seed, self._registers, self._values = seed, registers, values
        self._section, self._lead, self._marks, self._context = section, lead, marks, context
        self.first_set = SNAPSHOT_FILLERS
        self.first_value = self.first_set + registers * values
        self.first_mark = self.first_value + values
        self.first_query = self.first_mark + marks
        self.vocabulary = snapshot_vocabulary(registers, values, marks)
        self.sha256 = digest_of(f"snapshot {registers} {values} {section} {lead} {marks} {context}".encode())
        """Digest of the settings: this source reads no text."""

    def batch(self, split: Split, step: int, sequences: int, context: int) -> Batch:
        """`sequences` × `context` tokens."""
        return stack(self._sequence, self._seed, split, step, sequences, context)

    def _sequence(self, rng: np.random.Generator, _: Split, length: int) -> Row:
        front = (length - 1) // 2
        section, lead = self._lengths(rng, length - 1)
        tokens = rng.integers(SNAPSHOT_FILLERS, size=length)
        evidence = np.full(length, -1, dtype=np.int64)
        starts = np.arange(0, front, section)
        held = self._held(rng, len(starts), whole=length - 1 >= self._context)
        names = rng.permutation(self._marks)
        places, holding = self._places(rng, starts, section, lead, front)
        for register in range(self._registers):
            there = starts + register
            fits = there < front
            tokens[there[fits]] = self.first_set + register * self._values + held[register][fits]
        names = names[: len(places)]
        tokens[places] = self.first_mark + names
        asked, registers, at = self._asked(rng, len(places), front, length)
        tokens[at] = self.first_query + names[asked] * self._registers + registers
        tokens[at + 1] = self.first_value + held[registers, holding[asked]]
        evidence[at + 1] = places[asked]
        return Row(tokens=tokens, counted=evidence >= 0, evidence=evidence, documents=np.zeros(length, dtype=np.int32))

    def _lengths(self, rng: np.random.Generator, context: int) -> tuple[int, int]:
        """(of a section, of the lead) in a sequence of this context."""
        if context >= self._context:
            return self._section, self._lead
        shortest = short_section(self._registers, context)
        most = min(self._section, max(shortest, context // 8))
        powers = [shortest << n for n in range(16) if shortest << n <= most] or [most]
        section = int(rng.choice(powers))
        return section, min(self._lead, max(1, section // 4))

    def _held(self, rng: np.random.Generator, sections: int, *, whole: bool) -> np.ndarray:
        """(registers, sections): values, in whole sequences each of them once in every V sections."""
        if not whole:
            return rng.integers(self._values, size=(self._registers, sections))
        rounds = -(-sections // self._values)
        return np.stack(
            [
                np.concatenate([rng.permutation(self._values) for _ in range(rounds)])[:sections]
                for _ in range(self._registers)
            ]
        )

    def _places(
        self, rng: np.random.Generator, starts: np.ndarray, section: int, lead: int, front: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(where marks stand, ascending; in which section each)."""
        first, last = starts + self._registers - 1 + lead, np.minimum(starts + section, front)
        holding = np.flatnonzero(first < last)
        return rng.integers(first[holding], last[holding]), holding

    def _asked(
        self, rng: np.random.Generator, marks: int, front: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(which marks are asked for, which of their registers, where the queries stand): every register of every mark
        once while there is room, at random places of the back half."""
        slots = (length - front) // 2
        count = min(marks * self._registers, slots)
        at = front + 2 * np.sort(rng.choice(slots, size=count, replace=False))
        asked = rng.permutation(marks * self._registers)[:count]
        return asked // self._registers, asked % self._registers, at
