//! Configuration files.

use crate::{
    config::file,
    control::{
        model::WantedService,
        state::{Now, balancer::Balancer},
    },
    datapath::Limits,
};

/// A file's text. What is wrong with it has a place in it; what is accepted is taken by the daemon, and travels to it unchanged.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = match file::parse(text) {
        Ok(file) => file,
        Err(mistake) => {
            let lines = text.matches('\n').count() + 1;
            assert!((1..=lines).contains(&mistake.line), "line {} of {lines}", mistake.line);
            assert!(mistake.column >= 1, "{mistake}");
            let message = &mistake.message;
            assert!(!message.trim().is_empty() && !message.contains(['\n', '\r']), "{message:?}");
            return;
        }
    };
    let wanted = file.wanted().expect("what passes the check can be asked for");
    let travelled = serde_json::to_string(&wanted).expect("it can be sent");
    let arrived: Vec<WantedService> = serde_json::from_str(&travelled).expect("and be read");
    assert_eq!(arrived, wanted);
    // More services than a daemon has room for are refused by the daemon alone: a file does not say how many it has.
    let limits = Limits { services: u16::MAX, backends: u32::MAX };
    let now = Now { mono_ns: 1_000_000_000, wall: jiff::Timestamp::UNIX_EPOCH };
    let mut balancer = Balancer::default();
    for service in wanted {
        let name = service.service.name.clone();
        balancer.add_service(service.service, limits, now).expect("the daemon takes what passes the check");
        balancer.add_backends(&name, service.backends, limits, now).expect("and its backends");
    }
}
