//! What requests do.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use super::{Engine, Waiter};
use crate::{
    control::{
        Error,
        advisor::{self, Advice, Histogram},
        model::{
            ApplyReport, BackendSpec, BackendStatus, CountersView, DrainRequest, DrainStarted, FlowView, FlowsRequest,
            OutcomeCount, ProgramRuns, ServiceSpec, Status, WantedService,
        },
        reconcile::{self, Command},
        revision::{self, Scope},
        view,
    },
    daemon::{
        flow_log::FlowLog,
        handle::{EventStream, Reply, Request},
    },
    datapath::{DatapathError, FlowFilter, FlowRecord},
};

/// Flows listed unless another number is asked for.
const FLOWS_LISTED: usize = 1_000;
/// Status is never older than this.
const FRESH: Duration = Duration::from_millis(250);

/// Sends an answer, once it is known whether what it tells of is on disk.
pub(super) type Answer = Box<dyn FnOnce(&Result<(), Error>) + Send>;

/// The answer to a request that changes something.
fn changed<T: Send + 'static>(reply: Reply<T>, result: Result<T, Error>) -> Answer {
    Box::new(move |saved| {
        let result = result.and_then(|value| saved.clone().map(|()| value));
        // Whoever asked may have gone away meanwhile.
        let _ = reply.send(result);
    })
}

/// The answer to a question.
fn told<T: Send + 'static>(reply: Reply<T>, result: Result<T, Error>) -> Answer {
    Box::new(move |_| {
        // As above.
        let _ = reply.send(result);
    })
}

impl Engine {
    /// Does what is asked; `None` where the answer comes later or none is needed.
    pub(super) fn handle(&mut self, request: Request) -> Option<Answer> {
        if let Some(growth) = request.growth()
            && let Err(error) = self.store.make_room(growth)
        {
            request.refuse(Error::Internal(error.to_string()));
            return None;
        }
        Some(match request {
            Request::AddService(spec, reply) => {
                self.behind = true;
                changed(reply, self.add_service(*spec))
            }
            Request::SetService(name, patch, reply) => {
                let now = self.now();
                let result = self.balancer.set_service(&name, *patch, now);
                changed(reply, self.then_cycle(result))
            }
            Request::RemoveService(name, at_once, reply) => {
                let now = self.now();
                let result = self.balancer.remove_service(&name, at_once, now);
                changed(reply, self.then_cycle(result))
            }
            Request::Services(reply) => {
                let services = self.balancer.services.iter().map(|service| service.spec.clone()).collect();
                told(reply, Ok(services))
            }
            Request::AddBackend(service, spec, reply) => {
                self.behind = true;
                changed(reply, self.add_backend(&service, spec))
            }
            Request::SetBackend(service, name, patch, reply) => {
                let now = self.now();
                let result = self.balancer.set_backend(&service, &name, &patch, now);
                let result = self.then_cycle(result);
                changed(reply, result.and_then(|()| self.backend_status(&service, &name)))
            }
            Request::RemoveBackend(service, name, at_once, reply) => {
                let now = self.now();
                let result = self.balancer.remove_backend(&service, &name, at_once, now);
                changed(reply, self.then_cycle(result))
            }
            Request::Drain(service, name, how, reply) => changed(reply, self.drain(&service, &name, how)),
            Request::DrainAddress(address, how, reply) => {
                let now = self.now();
                let result = self.balancer.drain_address(address, how, now);
                let result = self.then_cycle(result);
                changed(
                    reply,
                    result.and_then(|drained| drained.iter().map(|(s, b)| self.drain_started(s, b)).collect()),
                )
            }
            Request::Activate(service, name, reply) => {
                let now = self.now();
                let result = self.balancer.activate(&service, &name, now);
                let result = self.then_cycle(result);
                changed(reply, result.and_then(|()| self.backend_status(&service, &name)))
            }
            Request::ActivateAddress(address, reply) => {
                let now = self.now();
                let result = self.balancer.activate_address(address, now);
                let result = self.then_cycle(result);
                let status = |(service, name): (String, String)| {
                    let status = self.backend_status(&service, &name)?;
                    Ok((service, status))
                };
                changed(reply, result.and_then(|all| all.into_iter().map(status).collect()))
            }
            Request::AnswerHold(service, name, answer, reply) => {
                let now = self.now();
                // What it was, for a backend that is deleted by its drain's end.
                let before = self.backend_status(&service, &name);
                let result = self.balancer.answer_hold(&service, &name, answer, now);
                let result = self.then_cycle(result);
                changed(reply, result.and_then(|()| self.backend_status(&service, &name).or(before)))
            }
            Request::If(scope, known, request) => match revision::check(&self.balancer.services, &scope, &known) {
                Ok(()) => return self.handle(*request),
                Err(error) => {
                    request.refuse(error);
                    return None;
                }
            },
            Request::Apply(wanted, dry_run, reply) => changed(reply, self.apply(&wanted, dry_run)),
            other => return self.handle_question(other),
        })
    }

    fn handle_question(&mut self, request: Request) -> Option<Answer> {
        Some(match request {
            Request::Wait(service, backend, what, reply) => {
                self.waiters.push(Waiter { service, backend, what, reply });
                return None;
            }
            Request::Status(service, reply) => told(reply, self.status(service.as_deref())),
            Request::Flows(which, reply) => told(reply, self.flows(&which)),
            Request::Advice(service, reply) => told(reply, self.advice(&service)),
            Request::Revision(scope, reply) => told(reply, revision::of(&self.balancer.services, &scope)),
            Request::Counters(reply) => told(reply, self.counters()),
            Request::Events(after, reply) => {
                let backlog = self.events.iter().filter(|event| event.id > after).cloned().collect();
                let newest = self.events.back().map_or(0, |event| event.id);
                told(reply, Ok(EventStream { backlog, newest, live: self.subscribers.subscribe() }))
            }
            Request::Check(report) => {
                let now = self.now();
                // Thousands come every second, and nearly all say what is known.
                if self.balancer.check(&report.service, &report.backend, report.passed, report.detail, now) {
                    self.cycle_and_log(false);
                }
                return None;
            }
            _ => return None,
        })
    }

    /// Puts what a command did into force. What the datapath cannot do at the moment it is asked again.
    fn then_cycle<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        let value = result?;
        self.mark_and_write();
        match self.cycle(false) {
            Ok(()) => Ok(value),
            Err(error) => {
                tracing::error!("the datapath failed, trying again: {error}");
                self.retry_at = Some(tokio::time::Instant::now() + super::RETRY);
                Err(error.into())
            }
        }
    }

    /// Marks rows and moves slots, which must not wait for the disk, and which a daemon that is killed now and knows nothing of them
    /// takes back. Deadlines and cuts it could not take back: those come after the disk, with the next cycle.
    fn mark_and_write(&mut self) {
        if !self.balancer.has_news() {
            return;
        }
        // What a drain began with is written with it.
        let marked =
            self.publish_without_deadlines().and_then(|()| if self.must_look() { self.look() } else { Ok(()) });
        if let Err(error) = marked {
            // The cycle that follows meets it again, and says so.
            tracing::debug!("{error}");
        }
        self.write_now();
    }

    /// Writes before the cycle does more. What cannot be written now is answered for after it.
    fn write_now(&mut self) {
        self.behind |= self.save_or_say_why().is_err();
    }

    fn take_back_what_was_written(&mut self, error: DatapathError) -> Error {
        let error = self.undo(error);
        self.write_now();
        error
    }

    fn add_service(&mut self, spec: ServiceSpec) -> Result<ServiceSpec, Error> {
        let now = self.now();
        let limits = self.datapath.limits();
        let spec = self.balancer.add_service(spec, limits, now)?;
        self.cycle(false).map_err(|error| {
            self.balancer.forget_service(&spec.name, now);
            self.undo(error)
        })?;
        Ok(spec)
    }

    fn add_backend(&mut self, service: &str, spec: BackendSpec) -> Result<BackendStatus, Error> {
        let now = self.now();
        let name = spec.name.clone();
        let address = spec.address.ip;
        let limits = self.datapath.limits();
        self.balancer.add_backend(service, spec, limits, now)?;
        self.set_up(service, &[(name.clone(), address)])?;
        // Before it can get a flow: those of a backend that nobody knows after a restart would be cut.
        self.write_now();
        self.cycle(false).map_err(|error| {
            self.balancer.forget_backend(service, &name, now);
            self.take_back_what_was_written(error)
        })?;
        self.backend_status(service, &name)
    }

    fn add_backends(&mut self, service: &str, specs: Vec<BackendSpec>) -> Result<(), Error> {
        let now = self.now();
        let hosts: Vec<(String, IpAddr)> = specs.iter().map(|spec| (spec.name.clone(), spec.address.ip)).collect();
        self.balancer.add_backends(service, specs, self.datapath.limits(), now)?;
        self.set_up(service, &hosts)
    }

    /// Gives new backends what is known already: where their rows' counters stand, and their hosts' next hops.
    fn set_up(&mut self, service: &str, hosts: &[(String, IpAddr)]) -> Result<(), Error> {
        let mut news = HashMap::new();
        for (name, address) in hosts {
            let (at, backend) = self.balancer.find_backend(service, name)?;
            let entry = &mut self.balancer.services[at].backends[backend];
            let counted = self.slot_counts.get(&entry.slot).copied().unwrap_or_default();
            entry.baseline = counted;
            entry.counted = counted;
            if let Some(known) = self.known_hops.get(address) {
                news.insert(*address, *known);
            }
        }
        if !news.is_empty() {
            let now = self.now();
            self.balancer.next_hops(&news, now);
        }
        Ok(())
    }

    /// Takes back what could not be put into force, and says why.
    fn undo(&mut self, error: DatapathError) -> Error {
        self.cycle_and_log(false);
        match error {
            DatapathError::Kernel { .. } => error.into(),
            DatapathError::Full { .. } => Error::Refused(error.to_string()),
            DatapathError::Unsupported(_) => Error::Invalid(error.to_string()),
        }
    }

    fn drain(&mut self, service: &str, name: &str, how: DrainRequest) -> Result<DrainStarted, Error> {
        let now = self.now();
        let result = self.balancer.drain(service, name, how, now);
        self.then_cycle(result)?;
        self.drain_started(service, name)
    }

    fn drain_started(&self, service: &str, name: &str) -> Result<DrainStarted, Error> {
        let (at, backend) = self.balancer.find_backend(service, name)?;
        Ok(view::drain_started(service, &self.balancer.services[at].backends[backend], self.now()))
    }

    fn backend_status(&self, service: &str, name: &str) -> Result<BackendStatus, Error> {
        let (at, backend) = self.balancer.find_backend(service, name)?;
        let service = &self.balancer.services[at];
        Ok(view::backend(service, &service.backends[backend], self.now()))
    }

    /// Nothing reaches the datapath or the disk before all steps are taken: what cannot be taken, or is only tried, leaves no trace.
    fn apply(&mut self, wanted: &[WantedService], dry_run: bool) -> Result<ApplyReport, Error> {
        let steps = reconcile::plan(&self.balancer.services, wanted)?;
        let mut report = ApplyReport { dry_run, ..ApplyReport::default() };
        if !steps.is_empty() {
            let before = self.balancer.clone();
            let mut added = Vec::new();
            let taken = steps.into_iter().try_for_each(|step| {
                report.changes.extend(step.changes);
                if let Command::AddService(spec) = &step.command {
                    added.push(spec.name.clone());
                }
                self.take_step(step.command)
            });
            if dry_run || taken.is_err() {
                self.balancer = before;
                taken?;
            } else {
                self.put_into_force(&added)?;
            }
        }
        report.revision = revision::of(&self.balancer.services, &Scope::All)?;
        Ok(report)
    }

    /// Puts all that was changed into force together: each publication of VIPs and each ring put in place by itself would cost a
    /// grace period. What the datapath has no room for takes the services `added` back with it.
    fn put_into_force(&mut self, added: &[String]) -> Result<(), Error> {
        // Before new backends can get a flow, as when one is added by itself.
        self.write_now();
        self.mark_and_write();
        self.cycle(false).map_err(|error| {
            let now = self.now();
            for service in added {
                self.balancer.forget_service(service, now);
            }
            self.take_back_what_was_written(error)
        })
    }

    fn take_step(&mut self, command: Command) -> Result<(), Error> {
        let now = self.now();
        match command {
            Command::AddService(spec) => self.balancer.add_service(*spec, self.datapath.limits(), now).map(drop),
            Command::SetService(name, patch) => self.balancer.set_service(&name, *patch, now).map(drop),
            Command::KeepService(name) => self.balancer.keep_service(&name, now),
            Command::RemoveService(name) => self.balancer.remove_service(&name, false, now),
            Command::AddBackends(service, specs) => self.add_backends(&service, specs),
            Command::SetBackend(service, name, patch) => self.balancer.set_backend(&service, &name, &patch, now),
            Command::KeepBackend(service, name) => self.balancer.activate(&service, &name, now),
            Command::RemoveBackend(service, name) => self.balancer.remove_backend(&service, &name, false, now),
        }
    }

    fn status(&mut self, service: Option<&str>) -> Result<Status, Error> {
        if self.last_look.elapsed() >= FRESH {
            self.cycle_and_log(true);
        }
        self.count();
        let mut status = view::status(&self.balancer, service, &self.datapath.interfaces(), self.totals, self.now())?;
        status.datapath.flow_log = self.flow_log.as_ref().map(FlowLog::status);
        Ok(status)
    }

    fn flows(&mut self, request: &FlowsRequest) -> Result<Vec<FlowView>, Error> {
        let mut filter = FlowFilter::default();
        match (&request.service, &request.backend) {
            (Some(service), Some(backend)) => {
                let (at, backend) = self.balancer.find_backend(service, backend)?;
                filter.service = Some(self.balancer.services[at].slot);
                filter.backend = Some(self.balancer.services[at].backends[backend].slot);
            }
            (Some(service), None) => filter.service = Some(self.balancer.services[self.balancer.find(service)?].slot),
            (None, Some(backend)) => {
                return Err(Error::Invalid(format!("which service's backend '{backend}'? write SERVICE/{backend}")));
            }
            (None, None) => {}
        }
        let records = self.datapath.flows(filter, request.limit.unwrap_or(FLOWS_LISTED))?;
        Ok(records.iter().filter_map(|record| self.flow_view(record)).collect())
    }

    /// Looks at every flow of the service, which is as much work as a sweep.
    fn advice(&mut self, service: &str) -> Result<Advice, Error> {
        let service = &self.balancer.services[self.balancer.find(service)?];
        let mut open = Histogram::default();
        let mut record = |length_ns: u64| open.record(u32::try_from(length_ns / 1_000_000).unwrap_or(u32::MAX));
        self.datapath.open_lengths(service.slot, self.clock.mono_ns(), &mut record)?;
        Ok(advisor::advise(&service.spec.name, &service.lengths, &open, service.spec.drain_timeout_s))
    }

    /// A flow by its names; `None` if its backend has gone.
    fn flow_view(&self, record: &FlowRecord) -> Option<FlowView> {
        let service = self.balancer.services.iter().find(|service| service.slot == record.service)?;
        let entry = service
            .backends
            .iter()
            .find(|entry| entry.slot == record.backend && entry.generation == record.generation)?;
        let now_ns = self.clock.mono_ns();
        let seconds = |since_ns: u64| Duration::from_nanos(now_ns.saturating_sub(since_ns)).as_secs_f64();
        Some(FlowView {
            protocol: record.protocol,
            client: record.client,
            vip: service.spec.vip,
            service: service.spec.name.clone(),
            backend: entry.spec.name.clone(),
            state: record.state,
            age_s: seconds(record.created_ns),
            idle_s: seconds(record.last_seen_ns),
        })
    }

    fn counters(&mut self) -> Result<CountersView, Error> {
        let counters = self.datapath.counters()?;
        let outcomes = counters.outcomes.into_iter();
        Ok(CountersView {
            outcomes: outcomes.map(|(name, packets)| OutcomeCount { name: name.to_owned(), packets }).collect(),
            program: counters.program.map(|(time, runs)| ProgramRuns { run_time_s: time.as_secs_f64(), runs }),
        })
    }
}
