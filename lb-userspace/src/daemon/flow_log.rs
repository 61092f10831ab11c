//! The flow log: a line of JSON for each flow that is over. Nothing waits for it: what the disk cannot take is counted and dropped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU16,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    control::{
        model::FlowLogStatus,
        state::{Now, service::Service},
        vip::{BackendAddress, Vip},
    },
    datapath::{BackendSlot, FlowEnd, LoggedFlow},
};

/// Lines that may wait for the disk.
const WAITING: usize = 65_536;
/// Names kept of backends that may have gone before the last of their flows was told.
const NAMES: usize = 100_000;
/// How often it is seen whether the file is still the one with its name.
const LOOK: Duration = Duration::from_millis(200);
/// Between two complaints about the disk.
const COMPLAIN: Duration = Duration::from_mins(1);

/// `[daemon.flow_log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowLogSpec {
    /// The file that lines are appended to.
    #[schemars(with = "String")]
    pub path: PathBuf,
    /// Log one flow in so many, chosen by the flow's hash.
    #[serde(default = "every")]
    pub sample: NonZeroU16,
    /// Only the flows of these services; all unless given.
    #[serde(default)]
    pub services: Vec<String>,
}

fn every() -> NonZeroU16 {
    NonZeroU16::MIN
}

/// How a flow ended, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Fin,
    Rst,
    Idle,
    CutByDrain,
    Unhealthy,
}

/// What is told of a flow's backend.
#[derive(Debug)]
struct Name {
    service: String,
    vip: Vip,
    backend: String,
    address: BackendAddress,
}

/// A flow on its way to the disk.
struct Line {
    name: Arc<Name>,
    flow: LoggedFlow,
    start: Timestamp,
    end: Timestamp,
    ended: Ended,
}

/// A line as it is written.
#[derive(Serialize)]
struct Written<'a> {
    start: Timestamp,
    end: Timestamp,
    duration_s: f64,
    protocol: crate::datapath::Protocol,
    client: std::net::SocketAddr,
    vip: Vip,
    service: &'a str,
    backend: &'a str,
    backend_address: BackendAddress,
    packets: Option<u64>,
    bytes: Option<u64>,
    reply_packets: Option<u64>,
    reply_bytes: Option<u64>,
    ended: Ended,
}

/// What the engine, the writer and whoever asks for a new file share.
#[derive(Debug, Default)]
struct Shared {
    written: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicUsize,
    reopen: AtomicBool,
}

/// The engine's end of the log.
pub struct FlowLog {
    spec: FlowLogSpec,
    names: HashMap<(BackendSlot, u32), Arc<Name>>,
    /// Backends whose flows were cut because their checks failed, not by a drain.
    cut_unhealthy: HashMap<(BackendSlot, u32), bool>,
    lines: Option<mpsc::Sender<Vec<Line>>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// Has the log begin its file anew.
#[derive(Debug, Clone)]
pub struct Reopen(Arc<Shared>);

impl Reopen {
    /// The next line goes to a file opened afresh.
    pub fn reopen(&self) {
        self.0.reopen.store(true, Ordering::Relaxed);
    }
}

impl FlowLog {
    /// Opens the file and starts the thread that writes to it.
    pub fn open(spec: FlowLogSpec) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut writer = Writer {
            file: None,
            path: spec.path.clone(),
            shared: Arc::clone(&shared),
            looked: Instant::now(),
            complained: None,
            torn: false,
        };
        writer.file = Some(writer.open()?);
        let (lines, batches) = mpsc::channel();
        let writer = std::thread::Builder::new().name("flow-log".to_owned()).spawn(move || writer.run(&batches))?;
        Ok(Self {
            spec,
            names: HashMap::new(),
            cut_unhealthy: HashMap::new(),
            lines: Some(lines),
            writer: Some(writer),
            shared,
        })
    }

    /// How its file is begun anew.
    pub fn reopener(&self) -> Reopen {
        Reopen(Arc::clone(&self.shared))
    }

    /// One flow in so many is wanted.
    pub fn sample(&self) -> NonZeroU16 {
        self.spec.sample
    }

    /// Lines written and lost since the daemon's start.
    pub fn status(&self) -> FlowLogStatus {
        FlowLogStatus {
            written: self.shared.written.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
        }
    }

    /// Remembers what backends are called, past their removal.
    pub fn learn(&mut self, services: &[Service]) {
        if self.names.len() > NAMES {
            self.names.clear();
            self.cut_unhealthy.clear();
        }
        for service in services {
            for entry in &service.backends {
                self.names.entry((entry.slot, entry.generation)).or_insert_with(|| {
                    Arc::new(Name {
                        service: service.spec.name.clone(),
                        vip: service.spec.vip,
                        backend: entry.spec.name.clone(),
                        address: entry.spec.address,
                    })
                });
            }
        }
    }

    /// A backend's flows are being cut; why.
    pub fn note_cut(&mut self, slot: BackendSlot, generation: u32, unhealthy: bool) {
        self.cut_unhealthy.insert((slot, generation), unhealthy);
    }

    /// Logs flows. `missed` have not even got here.
    pub fn take(&mut self, flows: Vec<LoggedFlow>, missed: u64, now: Now) {
        self.shared.lost.fetch_add(missed, Ordering::Relaxed);
        let mut lines: Vec<Line> = flows.into_iter().filter_map(|flow| self.line(flow, now)).collect();
        let room = WAITING.saturating_sub(self.shared.waiting.load(Ordering::Relaxed));
        if lines.len() > room {
            self.shared.lost.fetch_add((lines.len() - room) as u64, Ordering::Relaxed);
            lines.truncate(room);
        }
        let count = lines.len();
        if count == 0 {
            return;
        }
        self.shared.waiting.fetch_add(count, Ordering::Relaxed);
        if self.lines.as_ref().is_none_or(|writer| writer.send(lines).is_err()) {
            self.shared.lost.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// `None` for flows that are not wanted.
    fn line(&self, flow: LoggedFlow, now: Now) -> Option<Line> {
        let at = (flow.flow.backend, flow.flow.generation);
        let Some(name) = self.names.get(&at) else {
            // Of a backend that had gone before this daemon came.
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if !self.spec.services.is_empty() && !self.spec.services.contains(&name.service) {
            return None;
        }
        let wall = |mono_ns: u64| {
            let ago = Duration::from_nanos(now.mono_ns.saturating_sub(mono_ns));
            jiff::SignedDuration::try_from(ago).ok().and_then(|ago| now.wall.checked_sub(ago).ok()).unwrap_or(now.wall)
        };
        let ended = match flow.end {
            FlowEnd::Fin => Ended::Fin,
            FlowEnd::Rst => Ended::Rst,
            FlowEnd::Idle => Ended::Idle,
            FlowEnd::Cut if self.cut_unhealthy.get(&at) == Some(&true) => Ended::Unhealthy,
            FlowEnd::Cut => Ended::CutByDrain,
        };
        let (start, end) = (wall(flow.flow.created_ns), wall(flow.flow.last_seen_ns));
        Some(Line { name: Arc::clone(name), flow, start, end, ended })
    }
}

impl Drop for FlowLog {
    /// What waits is written first.
    fn drop(&mut self) {
        self.lines = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the flow log ended badly");
        }
    }
}

struct Writer {
    file: Option<File>,
    path: PathBuf,
    shared: Arc<Shared>,
    looked: Instant,
    complained: Option<Instant>,
    /// The last line in the file may be half of one.
    torn: bool,
}

impl Writer {
    fn open(&self) -> io::Result<File> {
        if let Some(directory) = self.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        File::options().create(true).append(true).open(&self.path)
    }

    fn run(mut self, batches: &mpsc::Receiver<Vec<Line>>) {
        while let Ok(lines) = batches.recv() {
            let count = lines.len();
            let counter = match self.write(&lines) {
                Ok(()) => &self.shared.written,
                Err(error) => {
                    self.complain(&error);
                    &self.shared.lost
                }
            };
            counter.fetch_add(count as u64, Ordering::Relaxed);
            self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
        }
    }

    fn write(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = Vec::new();
        if self.torn {
            text.push(b'\n');
        }
        for line in lines {
            serde_json::to_writer(&mut text, &line.written())?;
            text.push(b'\n');
        }
        if self.has_moved() {
            self.file = None;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let written = file.write_all(&text);
        self.torn = written.is_err();
        self.file = Some(file);
        written
    }

    /// Whether the file was moved away or a new one is asked for.
    fn has_moved(&mut self) -> bool {
        if self.shared.reopen.swap(false, Ordering::Relaxed) {
            return true;
        }
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.file.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        fs::metadata(&self.path).ok().map(identity) != own
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::error!("cannot write the flow log {}: {error}; lines are lost", self.path.display());
        }
    }
}

impl Line {
    fn written(&self) -> Written<'_> {
        let carried = self.flow.carried;
        let replies = carried.filter(|_| self.flow.both_ways);
        let lasted = self.flow.flow.last_seen_ns.saturating_sub(self.flow.flow.created_ns);
        Written {
            start: self.start,
            end: self.end,
            duration_s: Duration::from_nanos(lasted).as_secs_f64(),
            protocol: self.flow.flow.protocol,
            client: self.flow.flow.client,
            vip: self.name.vip,
            service: &self.name.service,
            backend: &self.name.backend,
            backend_address: self.name.address,
            packets: carried.map(|carried| carried.packets),
            bytes: carried.map(|carried| carried.bytes),
            reply_packets: replies.map(|carried| carried.reply_packets),
            reply_bytes: replies.map(|carried| carried.reply_bytes),
            ended: self.ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Carried, FlowRecord, FlowState, Protocol, ServiceSlot};

    fn named(log: &mut FlowLog) {
        let name = Name {
            service: "web".to_owned(),
            vip: "10.0.0.100:80/tcp".parse().expect("a VIP"),
            backend: "b1".to_owned(),
            address: "10.0.0.11".parse().expect("an address"),
        };
        log.names.insert((BackendSlot(1), 7), Arc::new(name));
    }

    fn flow(port: u16, end: FlowEnd) -> LoggedFlow {
        let flow = FlowRecord {
            protocol: Protocol::Tcp,
            client: ([192, 0, 2, 1], port).into(),
            service: ServiceSlot(0),
            backend: BackendSlot(1),
            generation: 7,
            state: FlowState::Closing,
            created_ns: 1_000_000_000,
            last_seen_ns: 3_500_000_000,
        };
        let carried = Carried { packets: 5, bytes: 300, reply_packets: 4, reply_bytes: 900 };
        LoggedFlow { flow, carried: Some(carried), both_ways: port.is_multiple_of(2), end }
    }

    fn open(path: PathBuf) -> FlowLog {
        let spec = FlowLogSpec { path, sample: every(), services: vec!["web".to_owned()] };
        let mut log = FlowLog::open(spec).expect("opens");
        named(&mut log);
        log
    }

    fn now() -> Now {
        Now { mono_ns: 4_000_000_000, wall: "2026-01-01T00:00:04Z".parse().expect("a time") }
    }

    fn settle(log: &FlowLog) {
        for _ in 0..500 {
            if log.shared.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the writer does not write");
    }

    #[test]
    fn a_line_tells_what_is_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("made/flows.json");
        let mut log = open(path.clone());
        log.take(vec![flow(40_000, FlowEnd::Fin), flow(40_001, FlowEnd::Cut)], 3, now());
        log.note_cut(BackendSlot(1), 7, true);
        let stranger = FlowRecord { generation: 8, ..flow(1, FlowEnd::Fin).flow };
        log.take(vec![flow(40_002, FlowEnd::Cut), LoggedFlow { flow: stranger, ..flow(1, FlowEnd::Fin) }], 0, now());
        settle(&log);
        assert_eq!(log.status(), FlowLogStatus { written: 3, lost: 4 });
        drop(log);
        let text = fs::read_to_string(path).expect("reads");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"start":"2026-01-01T00:00:01Z","end":"2026-01-01T00:00:03.5Z","duration_s":2.5,"protocol":"tcp","client":"192.0.2.1:40000","vip":"10.0.0.100:80/tcp","service":"web","backend":"b1","backend_address":"10.0.0.11","packets":5,"bytes":300,"reply_packets":4,"reply_bytes":900,"ended":"fin"}"#
        );
        assert!(lines[1].contains(r#""packets":5,"bytes":300,"reply_packets":null,"reply_bytes":null,"#), "{text}");
        assert!(
            lines[1].ends_with(r#""ended":"cut_by_drain"}"#) && lines[2].ends_with(r#""ended":"unhealthy"}"#),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_was_moved_is_begun_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (directory.path().join("flows.json"), directory.path().join("flows.json.1"));
        let mut log = open(path.clone());
        log.take(vec![flow(1, FlowEnd::Fin)], 0, now());
        settle(&log);
        fs::rename(&path, &moved).expect("moves");
        std::thread::sleep(LOOK);
        log.take(vec![flow(2, FlowEnd::Rst)], 0, now());
        settle(&log);
        fs::remove_file(&path).expect("it is there");
        log.reopener().reopen();
        log.take(vec![flow(3, FlowEnd::Idle)], 0, now());
        drop(log);
        let lines = |path| fs::read_to_string(path).expect("reads").lines().count();
        assert_eq!((lines(&path), lines(&moved)), (1, 1));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_holds_nobody_up() {
        let mut log = open("/dev/full".into());
        log.take(vec![flow(1, FlowEnd::Fin), flow(2, FlowEnd::Fin)], 0, now());
        settle(&log);
        assert_eq!(log.status(), FlowLogStatus { written: 0, lost: 2 });
        let many = (0..=WAITING as u32).map(|port| flow(port as u16, FlowEnd::Fin)).collect();
        log.take(many, 0, now());
        assert!(log.status().lost > 2, "more than may wait");
    }
}
