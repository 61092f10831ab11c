//! What happens in a run, and in what order: a pure function of the seed.

use super::{
    plan::{Command, Fault, Place, Step, Target},
    roster::{BACKENDS, Role, roster},
};
use crate::{lab::Family, model::Random};

/// The endless sequence of steps.
#[derive(Clone, Debug)]
pub struct Steps {
    random: Random,
    deck: Vec<Card>,
    places: Vec<[Place; BACKENDS]>,
    roles: Vec<Role>,
    /// By service: its backends are registered with the hosts' addresses of this family.
    families: Vec<Family>,
    /// Drained a step or two ago.
    lately: Option<Target>,
}

/// Kinds of steps; each comes up once a round, in random order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    Calm,
    Kill,
    Restart,
    Swap,
    Stop,
    StopInStorm,
    NoFiles,
    DiskFull,
    DiskFullAndKill,
    SocketGone,
    NearDown,
    FarDown,
    DownAndKill,
    Unplugged,
    KilledTwice,
    Forget,
    NewMac,
    Storm,
}

const DECK: &[Card] = &[
    Card::Calm,
    Card::Calm,
    Card::Calm,
    Card::Kill,
    Card::Kill,
    Card::Kill,
    Card::Restart,
    Card::Swap,
    Card::Stop,
    Card::StopInStorm,
    Card::NoFiles,
    Card::DiskFull,
    Card::DiskFullAndKill,
    Card::SocketGone,
    Card::NearDown,
    Card::FarDown,
    Card::DownAndKill,
    Card::Unplugged,
    Card::KilledTwice,
    Card::KilledTwice,
    Card::Forget,
    Card::NewMac,
    Card::Storm,
];

/// The fewest backends of a service that stay in rotation.
const STAY: usize = 2;

impl Steps {
    /// The steps of `seed`.
    pub fn new(seed: u64) -> Self {
        let roles: Vec<Role> = roster().iter().map(|service| service.role).collect();
        let first = |role: &Role| if *role == Role::Extra { Place::Never } else { Place::In };
        let places = roles.iter().map(|role| [first(role); BACKENDS]).collect();
        let families = roster().iter().map(|service| service.family).collect();
        Self { random: Random::new(seed), deck: Vec::new(), places, roles, families, lately: None }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn between_ms(&mut self, from: u32, to: u32) -> u32 {
        from + self.random.below(u64::from(to - from)) as u32
    }

    fn draw(&mut self) -> Card {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
        }
        let place = self.below(self.deck.len());
        self.deck.swap_remove(place)
    }

    fn fault(&mut self, card: Card) -> Fault {
        match card {
            Card::Calm => Fault::None,
            Card::Kill => {
                // Half of the kills hit while the command is being carried out, as far as one can aim.
                let lead_us = if self.below(2) == 0 { self.between_ms(0, 100_000) } else { 300_000 };
                Fault::Kill { lead_us, away_ms: self.between_ms(0, 4_000) }
            }
            Card::Restart => Fault::Restart { away_ms: self.between_ms(0, 2_000), swap: false },
            Card::Swap => Fault::Restart { away_ms: 0, swap: true },
            Card::Stop => Fault::Stop { lasts_ms: self.between_ms(500, 5_000), storm: false },
            Card::StopInStorm => Fault::Stop { lasts_ms: self.between_ms(500, 2_000), storm: true },
            Card::NoFiles => Fault::NoFiles { spare: self.between_ms(0, 5), lasts_ms: self.between_ms(1_000, 4_000) },
            Card::DiskFull => Fault::DiskFull { lasts_ms: self.between_ms(500, 3_000), kill: false },
            Card::DiskFullAndKill => Fault::DiskFull { lasts_ms: self.between_ms(500, 2_000), kill: true },
            Card::SocketGone => Fault::SocketGone,
            Card::NearDown => Fault::LinkDown { near: true, lasts_ms: self.between_ms(200, 3_000), kill: false },
            Card::FarDown => Fault::LinkDown { near: false, lasts_ms: self.between_ms(200, 3_000), kill: false },
            Card::DownAndKill => {
                let near = self.below(2) == 0;
                Fault::LinkDown { near, lasts_ms: self.between_ms(200, 2_000), kill: true }
            }
            Card::Unplugged => Fault::Unplugged { lasts_ms: self.between_ms(200, 2_000) },
            Card::KilledTwice => Fault::KilledTwice { up_ms: self.between_ms(0, 1_500) },
            Card::Forget => Fault::Forget,
            Card::NewMac => Fault::NewMac(self.below(BACKENDS)),
            Card::Storm => Fault::Storm,
        }
    }

    /// How many commands are given during a fault.
    fn commands_in(&mut self, fault: Fault) -> usize {
        match fault {
            Fault::None => 2 + self.below(3),
            Fault::DiskFull { .. } | Fault::Storm | Fault::Forget | Fault::NewMac(_) => 1 + self.below(3),
            // One that is under way when the fault strikes.
            Fault::Kill { .. }
            | Fault::KilledTwice { .. }
            | Fault::Stop { .. }
            | Fault::NoFiles { .. }
            | Fault::SocketGone => 1,
            Fault::Restart { .. } | Fault::LinkDown { .. } | Fault::Unplugged { .. } => self.below(2),
        }
    }

    fn commands(&mut self, count: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        for _ in 0..200 {
            if commands.len() >= count {
                break;
            }
            commands.extend(self.try_command());
        }
        commands
    }

    /// A command that makes sense as things stand, if the dice find one.
    fn try_command(&mut self) -> Option<Command> {
        let target = Target { service: self.below(self.roles.len()), backend: self.below(BACKENDS) };
        let role = self.roles[target.service];
        let place = self.places[target.service][target.backend];
        let can_go = place == Place::In && self.count_in(target.service) > STAY;
        match self.below(30) {
            0..8 if can_go => {
                self.lately = Some(target);
                Some(self.drain(target))
            }
            8..15 => {
                let target = self.any_at(Place::Out)?;
                Some(self.moved(Command::Activate(target), target, Place::In))
            }
            15..18 => {
                let target = self.lately.take().filter(|at| self.places[at.service][at.backend] == Place::Out)?;
                Some(self.drain(target))
            }
            18..20 if can_go && role != Role::Still => Some(self.moved(Command::Remove(target), target, Place::Gone)),
            20..22 if can_go && role != Role::Still => {
                Some(self.moved(Command::RemoveNow(target), target, Place::Gone))
            }
            22..26 => {
                let target = self.any_at(Place::Gone)?;
                Some(self.moved(Command::Add(target), target, Place::In))
            }
            26 => self.drain_host(target.backend),
            27 => self.activate_host(target.backend),
            28.. if role == Role::Extra => self.remove_service(target.service),
            _ => None,
        }
    }

    /// One of the backends that are meant to be `place`.
    fn any_at(&mut self, place: Place) -> Option<Target> {
        let all =
            (0..self.places.len()).flat_map(|service| (0..BACKENDS).map(move |backend| Target { service, backend }));
        let fitting: Vec<Target> = all.filter(|at| self.places[at.service][at.backend] == place).collect();
        let count = fitting.len();
        (count > 0).then(|| fitting[self.below(count)])
    }

    fn count_in(&self, service: usize) -> usize {
        self.places[service].iter().filter(|place| **place == Place::In).count()
    }

    fn moved(&mut self, command: Command, target: Target, to: Place) -> Command {
        self.places[target.service][target.backend] = to;
        command
    }

    fn drain(&mut self, target: Target) -> Command {
        let long = match self.roles[target.service] {
            Role::Short | Role::Still => self.below(4) > 0,
            Role::Long | Role::Datagrams | Role::Extra => false,
        };
        let timeout_ms = if long { 60_000 } else { self.between_ms(1_000, 7_000) };
        let silent = self.below(5) == 0;
        self.moved(Command::Drain { target, timeout_ms, silent }, target, Place::Out)
    }

    /// Services in which a host's backend is `place`, of those that know the host by its IPv4 address.
    fn services_at(&self, backend: usize, place: Place) -> Vec<usize> {
        let services = 0..self.places.len();
        services.filter(|&at| self.families[at] == Family::V4 && self.places[at][backend] == place).collect()
    }

    /// Only if it is in rotation wherever it is, and can be missed there.
    fn drain_host(&mut self, backend: usize) -> Option<Command> {
        let services = self.services_at(backend, Place::In);
        if !self.services_at(backend, Place::Out).is_empty() || services.iter().any(|&at| self.count_in(at) <= STAY) {
            return None;
        }
        for at in services {
            self.places[at][backend] = Place::Out;
        }
        Some(Command::DrainHost { backend, timeout_ms: self.between_ms(1_000, 7_000) })
    }

    /// Only if there is something to bring back.
    fn activate_host(&mut self, backend: usize) -> Option<Command> {
        let services = self.services_at(backend, Place::Out);
        if services.len() < 2 {
            return None;
        }
        for at in services {
            self.places[at][backend] = Place::In;
        }
        Some(Command::ActivateHost(backend))
    }

    fn remove_service(&mut self, service: usize) -> Option<Command> {
        if self.count_in(service) == 0 {
            return None;
        }
        self.places[service] = [Place::Never; BACKENDS];
        Some(Command::RemoveService { service, now: self.below(2) == 0 })
    }

    /// In calm: a service that is not there, and three backends.
    fn add_service(&mut self) -> Option<Vec<Command>> {
        let absent = |service: &usize| self.roles[*service] == Role::Extra && self.count_in(*service) == 0;
        let service = (0..self.roles.len()).find(absent)?;
        let mut commands = vec![Command::AddService(service)];
        for backend in 0..=STAY {
            let target = Target { service, backend };
            commands.push(self.moved(Command::Add(target), target, Place::In));
        }
        Some(commands)
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let card = self.draw();
        let fault = self.fault(card);
        let added = if card == Card::Calm { self.add_service() } else { None };
        let commands = if let Some(commands) = added {
            commands
        } else {
            let count = self.commands_in(fault);
            self.commands(count)
        };
        Some(Step { fault, commands, rest_ms: self.between_ms(0, 1_500) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_steps_and_another_others() {
        for seed in [0, 1, 42, u64::MAX] {
            let steps = |seed| Steps::new(seed).take(500).collect::<Vec<_>>();
            assert_eq!(steps(seed), steps(seed));
            assert_ne!(steps(seed), steps(seed ^ 1));
        }
    }

    #[test]
    fn every_kind_of_fault_comes_up_in_every_round() {
        for seed in 0..50 {
            let steps: Vec<Step> = Steps::new(seed).take(DECK.len()).collect();
            let kinds: HashSet<_> = steps.iter().map(|step| std::mem::discriminant(&step.fault)).collect();
            assert_eq!(kinds.len(), 13, "seed {seed}: {steps:?}");
        }
    }

    #[test]
    fn every_kind_of_command_is_given_and_enough_backends_stay() {
        let mut kinds = HashSet::new();
        for seed in 0..20 {
            let mut steps = Steps::new(seed);
            for _ in 0..500 {
                let step = steps.next().expect("there is always a next one");
                kinds.extend(step.commands.iter().map(std::mem::discriminant));
                for service in 0..steps.roles.len() {
                    assert!(steps.roles[service] == Role::Extra || steps.count_in(service) >= STAY, "seed {seed}");
                }
            }
        }
        assert_eq!(kinds.len(), 9);
    }
}
