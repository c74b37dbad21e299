"""Any sequence of calls on every pack store, beside three dictionaries."""

import asyncio
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.contract.errors import Conflict, PackError, UnknownVersion
from service.contract.pack import version
from service.stores._open import open_store
from service.stores._protocol import Kept


class AgainstADictionary(RuleBasedStateMachine):
    """Any sequence of calls leaves a store as it leaves three dictionaries."""

    url: str
    domains = st.sampled_from(["books", "films", "_general"])
    contents = st.sampled_from([b"", b"one", b"two", bytes(range(256))])
    pointers = st.dictionaries(domains, st.none() | contents.map(version))

    @initialize(number=st.integers(0, 2**62))
    def open(self, number):
        self.loop = asyncio.new_event_loop()
        # One bundle a run: runs share the place and must not see each other.
        self.store = open_store(self.url, f"run-{number}-{time.monotonic_ns()}")
        self.kept, self.live, self.history = {}, {}, {}

    def ask(self, answer):
        return self.loop.run_until_complete(answer)

    @rule(domain=domains, data=contents)
    def put(self, domain, data):
        self.kept[domain, self.ask(self.store.put(domain, data))] = data

    @rule(domain=domains, data=contents, most=st.none() | st.sampled_from([0, 3, 255, 256]))
    def fetch(self, domain, data, most):
        fetched = self.store.fetch(domain, version(data), most)
        if (domain, version(data)) not in self.kept:
            with pytest.raises(UnknownVersion):
                self.ask(fetched)
        elif most is not None and len(data) > most:
            with pytest.raises(PackError):
                self.ask(fetched)
        else:
            assert self.ask(fetched) == data

    @rule(versions=pointers, expected=st.none() | pointers, right=st.booleans(), by=st.sampled_from("ab"))
    def promote(self, versions, expected, right, by):
        if right:  # as a careful caller does; what is drawn is mostly wrong
            expected = {domain: self.live.get(domain) for domain in versions}
        promotion = self.store.promote(versions, run="r", by=by, expected=expected)
        if any(one is not None and (domain, one) not in self.kept for domain, one in versions.items()):
            with pytest.raises(UnknownVersion):
                self.ask(promotion)
        elif versions and any(self.live.get(domain) != one for domain, one in (expected or {}).items()):
            with pytest.raises(Conflict):
                self.ask(promotion)
        else:
            self.ask(promotion)
            self.live.update(versions)
            for domain, one in versions.items():
                self.history.setdefault(domain, []).append((one, "r", by))

    @rule(packs=st.lists(st.tuples(domains, contents.map(version))), spare=st.integers(0, 3))
    def remove(self, packs, spare):
        removed = []
        for domain, one in packs:
            promoted = [each for each, _, _ in reversed(self.history.get(domain, [])) if each is not None]
            last = list(dict.fromkeys(promoted))[:spare]
            if (domain, one) in self.kept and self.live.get(domain) != one and one not in last:
                removed.append(Kept(domain, one, len(self.kept.pop((domain, one)))))
        assert self.ask(self.store.remove(packs, spare)) == removed

    @rule(domain=domains)
    def told(self, domain):
        history = self.ask(self.store.history(domain))
        assert [(each.version, each.run, each.by) for each in history] == self.history.get(domain, [])

    @rule()
    def listed(self):
        kept = [Kept(domain, one, len(data)) for (domain, one), data in sorted(self.kept.items())]
        assert self.ask(self.store.kept()) == kept

    @invariant()
    def same_pointers(self):
        assert self.ask(self.store.live()) == self.live

    def teardown(self):
        if hasattr(self, "loop"):
            self.ask(self.store.close())
            self.loop.close()


def test_any_sequence_of_calls(url):
    machine = type("Machine", (AgainstADictionary,), {"url": url})
    quick = settings(
        max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(machine, settings=quick)
