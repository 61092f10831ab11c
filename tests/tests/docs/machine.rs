//! The network that the documents speak of: a balancer 10.0.0.1, backends from 10.0.0.11 on, and a router at 10.0.0.254
//! to the clients.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{self, Ebb, Lab, Namespace, Output, Plan},
    place::Place,
};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A server that any HTTP client understands and that says on which host it is.
const ANSWER: &str = "#!/bin/sh
while read -r line; do [ \"$line\" = \"$(printf '\\r')\" ] && break; done
printf 'HTTP/1.1 200 OK\\r\\nContent-Length: %s\\r\\nConnection: close\\r\\n\\r\\n%s\\n' $((${#NAME} + 1)) \"$NAME\"
";

/// The balancer as a reader has it after the package's installation, with hosts around it.
pub(crate) struct Machine {
    place: Place,
    lab: Lab,
}

impl Machine {
    pub(crate) fn set_up() -> Result<Self> {
        let lab = Lab::build(Plan::default())?;
        lab::ip(Some(&lab.balancer), "addr add 10.0.0.1/24 dev eth0\naddr add 10.0.1.1/24 dev eth0\n")?;
        lab::ip(Some(&lab.client), "addr add 10.0.2.5/24 dev eth0\nroute add default via 10.0.2.254\n")?;
        lab::ip(Some(&lab.switch), "addr add 10.0.0.254/24 dev outside\naddr add 10.0.2.254/24 dev outside\n")?;
        let place = Place::make(&lab, &lab.balancer)?;
        place.ok("mkdir -p /etc/ebb")?;
        // A handle without a daemon, for the program's path.
        let mut ebb = Ebb::new(&lab, &[])?;
        ebb.show_log = false;
        place.lend(ebb.program(), "/usr/bin/ebb")?;
        for (file, target) in [
            ("packaging/ebb.toml", "/etc/ebb/ebb.toml"),
            ("packaging/ebb.default", "/etc/default/ebb"),
            ("packaging/ebb.service", "/lib/systemd/system/ebb.service"),
        ] {
            place.put(target, &std::fs::read_to_string(Path::new(REPOSITORY).join(file))?)?;
        }
        place.put("/usr/local/bin/answer", ANSWER)?;
        place.ok("chmod 755 /usr/local/bin/answer; mkdir -p /usr/share/ebb")?;
        let machine = Self { place, lab };
        machine.set_up_backends()?;
        Ok(machine)
    }

    fn set_up_backends(&self) -> Result<()> {
        let mut hosts = String::from("127.0.0.1 localhost\n10.0.0.1 balancer\n");
        let mut namespaces = format!("client {}\n", self.lab.client.name());
        for name in ["balancer", "lb-1", "lb-2"] {
            writeln!(namespaces, "{name} {}", self.lab.balancer.name())?;
        }
        for (number, host) in (1..).zip(&self.lab.backends) {
            let name = format!("web-{number}");
            let own = format!("addr add 10.0.0.1{number}/24 dev eth0\naddr add 10.0.1.1{number}/24 dev eth0\n");
            lab::ip(Some(host), &format!("{own}route add default via 10.0.0.254\n"))?;
            writeln!(hosts, "10.0.0.1{number} {name}")?;
            writeln!(namespaces, "{name} {}", host.name())?;
            for port in [80, 8080, 8443] {
                let serve = format!("socat TCP-LISTEN:{port},fork,reuseaddr EXEC:answer >/dev/null 2>&1 &");
                self.place.run(host, &serve, &[("NAME".to_owned(), name.clone())])?.succeeded(&serve)?;
            }
        }
        self.place.put("/etc/hosts", &hosts)?;
        self.place.put("/etc/lab-hosts", &namespaces)
    }

    /// The hosts that a block is for.
    pub(crate) fn hosts(&self, wanted: Option<&str>) -> Result<Vec<&Namespace>> {
        Ok(match wanted {
            None | Some("balancer") => vec![&self.lab.balancer],
            Some("router") => vec![&self.lab.switch],
            Some("client") => vec![&self.lab.client],
            Some("backends") => self.lab.backends.iter().collect(),
            Some(name) => {
                let number: usize = name.strip_prefix("web-").context("a host called web-N")?.parse()?;
                vec![self.lab.backends.get(number - 1).context("there are three")?]
            }
        })
    }

    pub(crate) fn run(&self, host: &Namespace, script: &str, variables: &[(String, String)]) -> Result<Output> {
        self.place.run(host, script, variables)
    }

    pub(crate) fn balancer(&self, script: &str, variables: &[(String, String)]) -> Result<Output> {
        self.place.run(&self.lab.balancer, script, variables)
    }

    pub(crate) fn put(&self, path: &Path, text: &str) -> Result<()> {
        self.place.put(&path.display().to_string(), text)
    }

    /// Has `ebb check` read a piece of a configuration; what belongs below a service is put below one.
    pub(crate) fn check(&self, piece: &str) -> Result<()> {
        let first = piece.lines().map(str::trim).find(|line| line.starts_with('[')).unwrap_or_default();
        let head = if first.starts_with("[service.") || first.starts_with("[[service.") {
            "[[service]]\nname = \"web\"\nvip = \"10.0.0.100:80/tcp\"\n"
        } else {
            ""
        };
        self.place.put("/tmp/piece.toml", &format!("{head}{piece}"))?;
        self.place.ok("ebb check /tmp/piece.toml").map(drop)
    }
}

/// What a failed test says about a command.
pub(crate) trait Told {
    fn told(&self, script: &str, wanted: i32) -> String;
    fn succeeded(&self, script: &str) -> Result<()>;
}

impl Told for Output {
    fn told(&self, script: &str, wanted: i32) -> String {
        let Self { code, stdout, stderr } = self;
        format!("{}\nexit code {code} instead of {wanted}; it printed:\n{stdout}{stderr}", script.trim_end())
    }

    fn succeeded(&self, script: &str) -> Result<()> {
        ensure!(self.code == 0, "{}", self.told(script, 0));
        Ok(())
    }
}
