//! What goes wrong, drawn from the seed: connections, processes, servers, commands, and operators who change their mind.

use steep_protocol::message::adjust::{Adjustment, MaxRate};
use steep_protocol::message::agent::{Command, TargetCommand};
use steep_protocol::message::api::{InitRequest, Order};
use steep_protocol::message::job::{CancelledData, JobSpec};
use steep_protocol::{ByteCount, Fault, FaultKind};

use super::super::super::Question;
use super::dice::Dice;
use super::disk::Fuse;
use super::source::{failed, transient};
use super::world::Cluster;

/// Chances in a thousand: a step of the simulation, or a stage of a command.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weather {
    cuts: u64,
    kills: u64,
    stops: u64,
    coordinator: u64,
    crashes: u64,
    sessions: u64,
    slots: u64,
    spools: u64,
    orders: u64,
    transient: u64,
    permanent: u64,
    /// The longest outage, in milliseconds.
    long: i64,
}

impl Weather {
    pub(super) fn calm() -> Self {
        Self::default()
    }

    /// Nothing that a job cannot outlive by itself.
    pub(super) fn mild(dice: &mut Dice) -> Self {
        let mut some = |most| {
            if dice.chance(500) {
                dice.below(most)
            } else {
                0
            }
        };
        Self {
            cuts: some(15),
            kills: some(6),
            stops: some(4),
            coordinator: some(8),
            crashes: some(5),
            sessions: some(4),
            transient: some(60),
            long: 8_000,
            ..Self::default()
        }
    }

    /// Anything.
    pub(super) fn rough(dice: &mut Dice) -> Self {
        let mild = Self::mild(dice);
        let mut some = |most| {
            if dice.chance(300) {
                dice.below(most)
            } else {
                0
            }
        };
        Self {
            slots: some(3),
            spools: some(6),
            orders: some(15),
            permanent: some(8),
            long: dice.pick(&[8_000, 20_000, 90_000]),
            ..mild
        }
    }

    /// Whether nothing was broken for good and nobody interfered.
    pub(super) fn is_mild(&self) -> bool {
        self.slots + self.spools + self.orders + self.permanent == 0 && self.long <= 8_000
    }

    /// The fault of a command's stage, if it has one.
    pub(super) fn hits(&self, dice: &mut Dice, command: &Command) -> Option<Fault> {
        if dice.chance(self.transient) {
            return Some(transient("the connection to PostgreSQL broke"));
        }
        if !dice.chance(self.permanent) {
            return None;
        }
        let copies = matches!(command, Command::Target(TargetCommand::Copy(_)));
        Some(match dice.below(4) {
            0 if copies => Fault::new(FaultKind::SourceChanged, "a table was truncated"),
            1 => Fault::new(FaultKind::TargetChanged, "others wrote to the target"),
            _ => failed("no space is left on the device"),
        })
    }
}

impl Cluster {
    /// One of the things that may go wrong at any moment.
    pub(super) fn strike(&mut self, specs: &[JobSpec]) {
        let weather = self.weather;
        let n = usize::try_from(self.dice.below(self.nodes.len() as u64)).unwrap();
        let long = self.dice.between(200, weather.long.max(300));
        let until = self.now + self.dice.pick(&[300, long.min(3_000), long]);
        if self.dice.chance(weather.cuts) {
            self.cut(n, until);
        }
        if self.dice.chance(weather.kills) {
            self.kill(n, until);
        }
        if self.dice.chance(weather.stops) && self.nodes[n].agent.is_up() {
            self.stop(n, until);
        }
        if self.dice.chance(weather.coordinator) {
            match self.dice.below(3) {
                0 => self.kill_coordinator(until),
                1 => self.disk.light(Fuse::Before(self.dice.below(6) as u32)),
                _ => self.disk.light(Fuse::After(self.dice.below(6) as u32)),
            }
        }
        if self.dice.chance(weather.crashes) {
            self.note(|| format!("server {n} crashes until {until}"));
            self.nodes[n].server.crash(until);
        }
        if self.dice.chance(weather.sessions) {
            self.note(|| "the sessions that hold snapshots end".to_owned());
            for open in &mut self.nodes[0].agent.opens {
                open.held = open.held.map(|_| u64::MAX);
            }
        }
        if self.dice.chance(weather.slots) {
            let slots: Vec<String> = self.nodes[0].server.slots.keys().cloned().collect();
            if !slots.is_empty() {
                let at = usize::try_from(self.dice.below(slots.len() as u64)).unwrap();
                self.note(|| format!("the slot {} loses its WAL", slots[at]));
                if let Some(slot) = self.nodes[0].server.slots.get_mut(&slots[at]) {
                    slot.lost = true;
                }
            }
        }
        if self.dice.chance(weather.spools) {
            self.note(|| "what is stored is damaged".to_owned());
            for archive in self.nodes[0].server.archives.values_mut() {
                archive.damaged = true;
            }
        }
        if self.dice.chance(weather.orders) {
            self.interfere(specs);
        }
    }

    /// An operator changes his mind.
    fn interfere(&mut self, specs: &[JobSpec]) {
        let at = usize::try_from(self.dice.below(specs.len() as u64)).unwrap();
        let spec = specs[at].clone();
        let node = spec.target.clone();
        let order = match self.dice.below(5) {
            0 | 1 => Order::Cancel {
                node,
                data: CancelledData::Remove,
            },
            2 => Order::Init(InitRequest::Resume(vec![spec])),
            3 => Order::Init(InitRequest::Copy(vec![spec])),
            _ => Order::Adjust {
                node,
                change: Adjustment {
                    parallel: Some(2),
                    max_rate: Some(MaxRate::Limited(ByteCount(1_000_000))),
                },
            },
        };
        let answer = self.order(order.clone());
        self.note(|| format!("an operator orders {order:?}: {answer:?}"));
    }

    /// Whether the order was accepted, if that is known already.
    pub(super) fn order(&mut self, order: Order) -> Option<Result<(), Fault>> {
        let answer = self.ask(Question::from(order));
        answer.map(|answer| answer.map(drop))
    }
}
