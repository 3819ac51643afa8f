//! Which target of a shared snapshot has which part. Pure.
//!
//! The source is the tracker: targets offer it parts that they want, and it chooses one and where to get
//! it. As long as the source has a free connection it reads a part that nobody has; otherwise a target gets
//! what another one has received. So the source reads each part about once, and is never idle for it.
//!
//! A part that is on its way to a target that will keep it is not read for another one; [`Next::Wait`] says
//! so, and the caller decides how long. Parts that a target does not deliver are forgotten as its own.
//!
//! Of each part it remembers one digest of what was sent, which whoever fetches the part from a target compares.
//! A part that is sent twice may be packed differently, or have its rows in another order: only targets that got
//! what the digest is of are named.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use steep_protocol::limits::PEERS_MAX;
use steep_protocol::message::peer::{CopyFormat, Keeping, PartAs, PartSum};
use steep_protocol::{NodeId, PartNo};

/// How long after its last byte has gone a target may take to say that it keeps a part.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Tracker {
    /// Reads at once: more would only wait for a connection.
    capacity: usize,
    reads: usize,
    /// By seat. A target beyond the last is served, and not asked.
    members: Vec<Option<Member>>,
    parts: HashMap<PartAs, Copies>,
    /// What each target is receiving.
    flights: HashMap<(Seat, PartAs), Flight>,
    serial: u64,
}

#[derive(Debug)]
struct Member {
    node: NodeId,
    /// The parts that it reads as text, a bit for each.
    text: Vec<u64>,
    /// How often it was named to others.
    named: u64,
}

type Seat = usize;

/// A set of seats.
type Seats = u64;

#[derive(Debug, Clone, Copy, Default)]
struct Copies {
    holders: Seats,
    /// They are receiving it from the source, and will keep it.
    arriving: Seats,
    /// What was sent of it; `None` until the source has sent it to its end.
    sum: Option<PartSum>,
    /// What they have is something else, or they do not deliver it.
    others: Seats,
}

impl Copies {
    /// Those that have what was sent.
    fn proven(self) -> Seats {
        self.sum.map_or(0, |_| self.holders & !self.others)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// From the source. The number tells a read from a later one.
    Reading(u64),
    /// The source has sent it all.
    Sent(Instant),
    From(Seat),
}

/// What a target asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) target: &'a NodeId,
    /// The most wanted first.
    pub(super) wanted: &'a [PartAs],
    /// Whom the target can ask.
    pub(super) peers: &'a [NodeId],
    pub(super) keeping: Keeping,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Read it from PostgreSQL; say [`Tracker::ended`] once with the number.
    Read(PartAs, u64),
    /// Whom, and what was sent.
    Ask(PartAs, NodeId, PartSum),
    /// All are on their way to others.
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Sent(PartSum),
    Broken,
}

impl Tracker {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            reads: 0,
            members: Vec::new(),
            parts: HashMap::new(),
            flights: HashMap::new(),
            serial: 0,
        }
    }

    /// Chooses one of the wanted parts, and where to get it.
    pub(super) fn next(&mut self, ask: &Ask<'_>, now: Instant) -> Next {
        self.forget_unconfirmed(now);
        let own = self.seat(ask.target);
        for part in ask.wanted {
            self.land(own, *part);
        }
        let others = !own.map_or(0, bit);
        let askable = self.seats_of(ask.peers) & others;
        let free = ask.wanted.iter().copied().find(|part| {
            // Nobody whom the target can ask has it, and it is on its way to nobody else.
            let copies = self.copies(*part);
            copies.proven() & askable == 0 && copies.arriving & others == 0
        });
        if let Some(part) = free
            && self.reads < self.capacity
        {
            return self.read(own, part, ask.keeping);
        }
        if let Some((part, holder)) = self.least_asked(ask.wanted, askable) {
            return self.fetch(own, part, holder);
        }
        free.map_or(Next::Wait, |part| self.read(own, part, ask.keeping))
    }

    /// Reads the first wanted part although it is on its way to another target.
    pub(super) fn read_anyway(&mut self, ask: &Ask<'_>) -> Option<Next> {
        let own = self.seat(ask.target);
        let part = *ask.wanted.first()?;
        Some(self.read(own, part, ask.keeping))
    }

    /// A read has ended.
    pub(super) fn ended(
        &mut self,
        target: &NodeId,
        (part, serial): (PartAs, u64),
        how: Ended,
        now: Instant,
    ) {
        self.reads = self.reads.saturating_sub(1);
        let Some(seat) = self.seat_of(target) else {
            return;
        };
        if let Ended::Sent(sum) = how {
            self.note_sum(seat, part, sum);
        }
        if self.flights.get(&(seat, part)) != Some(&Flight::Reading(serial)) {
            return;
        }
        match how {
            Ended::Sent(_) => {
                self.flights.insert((seat, part), Flight::Sent(now));
            }
            Ended::Broken => self.land(Some(seat), part),
        }
    }

    /// A target has received a part. Others may fetch it where it is kept.
    pub(super) fn received(&mut self, target: &NodeId, part: PartAs, kept: bool) {
        if let Some(seat) = self.seat(target) {
            // The digest has not changed since it was told.
            let compared = matches!(self.flights.get(&(seat, part)), Some(Flight::From(_)));
            self.land(Some(seat), part);
            if kept {
                let copies = self.parts.entry(part).or_default();
                copies.holders |= bit(seat);
                if compared {
                    copies.others &= !bit(seat);
                }
            }
        }
    }

    /// A target did not deliver a part.
    pub(super) fn failed(&mut self, holder: &NodeId, part: PartAs) {
        if let Some(seat) = self.seat_of(holder)
            && let Some(copies) = self.parts.get_mut(&part)
        {
            copies.holders &= !bit(seat);
            copies.others |= bit(seat);
        }
    }

    /// A target takes no part any more.
    pub(super) fn left(&mut self, target: &NodeId) {
        let Some(seat) = self.seat_of(target) else {
            return;
        };
        self.members[seat] = None;
        self.flights.retain(|(of, _), _| *of != seat);
        for copies in self.parts.values_mut() {
            copies.holders &= !bit(seat);
            copies.arriving &= !bit(seat);
            copies.others &= !bit(seat);
        }
    }

    /// The format in which a target reads a part, as far as it has asked.
    pub(super) fn format(&self, target: &NodeId, part: PartNo) -> Option<CopyFormat> {
        let seat = self.seat_of(target)?;
        let text = &self.members[seat].as_ref()?.text;
        let (word, bit) = place(part);
        Some(match text.get(word).is_some_and(|w| w & bit != 0) {
            true => CopyFormat::Text,
            false => CopyFormat::Binary,
        })
    }

    fn read(&mut self, own: Option<Seat>, part: PartAs, keeping: Keeping) -> Next {
        self.reads += 1;
        self.serial += 1;
        if let Some(seat) = own {
            self.note_format(seat, part);
            self.flights
                .insert((seat, part), Flight::Reading(self.serial));
            if keeping == Keeping::Intended {
                self.parts.entry(part).or_default().arriving |= bit(seat);
            }
        }
        Next::Read(part, self.serial)
    }

    fn fetch(&mut self, own: Option<Seat>, part: PartAs, holder: Seat) -> Next {
        if let Some(seat) = own {
            self.note_format(seat, part);
            self.flights.insert((seat, part), Flight::From(holder));
        }
        let sum = self.copies(part).sum;
        match (self.members[holder].as_mut(), sum) {
            (Some(member), Some(sum)) => {
                member.named += 1;
                Next::Ask(part, member.node.clone(), sum)
            }
            _ => Next::Wait,
        }
    }

    /// The wanted part whose holder serves the fewest now, and the holder. Of equals the one that was named
    /// least, then the part wanted most.
    fn least_asked(&self, wanted: &[PartAs], askable: Seats) -> Option<(PartAs, Seat)> {
        let mut serving = [0usize; PEERS_MAX];
        for flight in self.flights.values() {
            if let Flight::From(seat) = flight {
                serving[*seat] += 1;
            }
        }
        let choices = wanted.iter().flat_map(|part| {
            let holders = self.copies(*part).proven() & askable;
            seats(holders).map(move |seat| (*part, seat))
        });
        choices.min_by_key(|(_, seat)| {
            let named = self.members[*seat].as_ref().map_or(0, |m| m.named);
            (serving[*seat], named)
        })
    }

    fn copies(&self, part: PartAs) -> Copies {
        self.parts.get(&part).copied().unwrap_or_default()
    }

    /// The target receives the part no more.
    fn land(&mut self, seat: Option<Seat>, part: PartAs) {
        if let Some(seat) = seat
            && self.flights.remove(&(seat, part)).is_some()
            && let Some(copies) = self.parts.get_mut(&part)
        {
            copies.arriving &= !bit(seat);
        }
    }

    /// Targets that received a part and never said what became of it.
    fn forget_unconfirmed(&mut self, now: Instant) {
        let late = |flight: &Flight| matches!(flight, Flight::Sent(at) if now.saturating_duration_since(*at) >= GRACE);
        let parts = &mut self.parts;
        self.flights.retain(|(seat, part), flight| {
            let gone = late(flight);
            if gone && let Some(copies) = parts.get_mut(part) {
                copies.arriving &= !bit(*seat);
            }
            !gone
        });
    }

    /// A part was sent to its end. The first digest stays while anybody has what it is of, or is fetching that.
    fn note_sum(&mut self, seat: Seat, part: PartAs, sum: PartSum) {
        let mut flights = self.flights.iter();
        let fetched =
            flights.any(|((_, of), flight)| *of == part && matches!(flight, Flight::From(_)));
        let copies = self.parts.entry(part).or_default();
        match copies.sum {
            Some(known) if known == sum => {}
            Some(_) if copies.proven() & bit(seat) != 0 => return,
            Some(_) if copies.proven() != 0 || fetched => {
                copies.others |= bit(seat);
                return;
            }
            Some(_) => {
                copies.sum = Some(sum);
                copies.others = Seats::MAX;
            }
            None => copies.sum = Some(sum),
        }
        copies.others &= !bit(seat);
    }

    fn note_format(&mut self, seat: Seat, part: PartAs) {
        let Some(member) = self.members[seat].as_mut() else {
            return;
        };
        let (word, bit) = place(part.part);
        match part.format {
            CopyFormat::Text => {
                if member.text.len() <= word {
                    member.text.resize(word + 1, 0);
                }
                member.text[word] |= bit;
            }
            CopyFormat::Binary => {
                if let Some(word) = member.text.get_mut(word) {
                    *word &= !bit;
                }
            }
        }
    }

    fn seat_of(&self, node: &NodeId) -> Option<Seat> {
        let sits = |m: &Option<Member>| m.as_ref().is_some_and(|m| m.node == *node);
        self.members.iter().position(sits)
    }

    /// The target's seat, taken if it has none yet; `None` where all are taken.
    fn seat(&mut self, node: &NodeId) -> Option<Seat> {
        if let Some(seat) = self.seat_of(node) {
            return Some(seat);
        }
        let member = Some(Member {
            node: node.clone(),
            text: Vec::new(),
            named: 0,
        });
        if let Some(seat) = self.members.iter().position(Option::is_none) {
            self.members[seat] = member;
            return Some(seat);
        }
        if self.members.len() == PEERS_MAX {
            return None;
        }
        self.members.push(member);
        Some(self.members.len() - 1)
    }

    fn seats_of(&self, nodes: &[NodeId]) -> Seats {
        nodes
            .iter()
            .filter_map(|node| self.seat_of(node))
            .fold(0, |seats, seat| seats | bit(seat))
    }
}

/// There are at most [`PEERS_MAX`] seats, as many as a [`Seats`] has bits.
fn bit(seat: Seat) -> Seats {
    1 << seat
}

fn seats(of: Seats) -> impl Iterator<Item = Seat> {
    (0..PEERS_MAX).filter(move |seat| of & bit(*seat) != 0)
}

fn place(part: PartNo) -> (usize, u64) {
    (part.0 as usize / 64, 1 << (part.0 % 64))
}

#[cfg(test)]
mod tests;
