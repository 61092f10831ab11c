//! What `ebb run` runs with: a flag where one was given, else the file, else the default.

use std::{net::SocketAddr, path::PathBuf};

use super::args::{DEFAULT_STATE_DIR, RunArgs};
use crate::{
    api::{remote, socket::Access},
    config::{
        file::{Daemon, MaxFlows, Mode},
        remote::Remote,
    },
    daemon::{flow_log::FlowLogSpec, hooks::HookSpec},
    datapath,
};

/// All settings of a run.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// How the datapath is opened.
    pub(super) datapath: datapath::Options,
    /// Where what must survive a reboot is kept.
    pub(super) state_dir: PathBuf,
    /// Where metrics are served, if anywhere.
    pub(super) metrics: Option<SocketAddr>,
    /// Who may use the socket.
    pub(super) access: Access,
    /// Where the status page is served, if anywhere.
    pub(super) status: Option<SocketAddr>,
    /// Who may control the daemon from other hosts, if anybody.
    pub(super) remote: Option<remote::Settings>,
    /// Where flows that are over are told, if anywhere.
    pub(super) flow_log: Option<FlowLogSpec>,
    /// Who is told what happens.
    pub(super) hooks: Vec<HookSpec>,
}

impl Settings {
    /// Flags over file over defaults. Interfaces are not merged: those on the command line replace the file's.
    pub(super) fn merge(args: &RunArgs, file: &Daemon) -> Self {
        let defaults = datapath::Options::default();
        let interfaces = if args.interfaces.is_empty() { &file.interfaces } else { &args.interfaces };
        let pin_path = args.places.pin_path.as_ref().or(file.pin_path.as_ref());
        let state_dir = args.places.state_dir.as_ref().or(file.state_dir.as_ref());
        Self {
            state_dir: state_dir.cloned().unwrap_or_else(default_state_dir),
            metrics: args.metrics.or(file.metrics),
            access: Access {
                mode: args.socket_mode.or(file.socket_mode).unwrap_or(Access::default().mode),
                group: args.socket_group.as_ref().or(file.socket_group.as_ref()).cloned(),
            },
            status: args.status.or(file.status),
            remote: file.remote.as_ref().map(Remote::settings),
            flow_log: file.flow_log.clone(),
            hooks: file.hooks.clone(),
            datapath: datapath::Options {
                interfaces: interfaces.clone(),
                mode: mode(args.mode.or(file.mode)),
                max_flows: args.max_flows.or(file.max_flows).map_or(defaults.max_flows, MaxFlows::get),
                count_flows: file.flow_log.is_some(),
                pin_path: pin_path.cloned().unwrap_or(defaults.pin_path),
                ..defaults
            },
        }
    }
}

/// The datapath's word for a mode, `auto` unless one was given.
pub(super) fn mode(given: Option<Mode>) -> datapath::Mode {
    match given.unwrap_or_default() {
        Mode::Auto => datapath::Mode::Auto,
        Mode::Native => datapath::Mode::Native,
        Mode::Generic => datapath::Mode::Generic,
    }
}

fn default_state_dir() -> PathBuf {
    PathBuf::from(DEFAULT_STATE_DIR)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn merged(words: &[&str], file: &str) -> Settings {
        let cli = Cli::try_parse_from(["ebb", "run"].iter().chain(words)).expect("well formed");
        let Command::Run(args) = cli.command else { panic!("it is a run") };
        let file = crate::config::file::parse(file).expect("well formed");
        Settings::merge(&args, &file.daemon)
    }

    const FILE: &str = "[daemon]\ninterfaces = [\"eth0\", \"eth1\"]\nmode = \"generic\"\nmax_flows = 4096\n\
                        metrics = \"127.0.0.1:9090\"\nstate_dir = \"/srv/ebb\"\n";

    #[test]
    fn the_file_wins_over_the_defaults() {
        let settings = merged(&[], FILE);
        assert_eq!(settings.datapath.interfaces, ["eth0", "eth1"]);
        assert_eq!(settings.datapath.mode, datapath::Mode::Generic);
        assert_eq!(settings.datapath.max_flows, 4096);
        assert_eq!(settings.state_dir, PathBuf::from("/srv/ebb"));
        assert_eq!(settings.metrics, Some(([127, 0, 0, 1], 9090).into()));
        assert_eq!(settings.datapath.pin_path, datapath::default_pin_path());
    }

    #[test]
    fn the_flag_and_the_file_take_the_same_numbers_of_flows() {
        for (flows, taken) in [("1", true), ("67108864", true), ("0", false), ("67108865", false), ("-1", false)] {
            let flag = Cli::try_parse_from(["ebb", "run", &format!("--max-flows={flows}")]).is_ok();
            let file = crate::config::file::parse(&format!("[daemon]\nmax_flows = {flows}\n")).is_ok();
            assert_eq!((flag, file), (taken, taken), "{flows}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let settings = merged(&["-i", "eth9", "--mode", "native", "--max-flows", "2048", "--pin-path", "/p"], FILE);
        assert_eq!(settings.datapath.interfaces, ["eth9"]);
        assert_eq!(settings.datapath.mode, datapath::Mode::Native);
        assert_eq!(settings.datapath.max_flows, 2048);
        assert_eq!(settings.datapath.pin_path, PathBuf::from("/p"));
    }
}
