//! What the kernel and the process's rights allow.

use std::{fs, path::Path};

use super::{Finding, Level};
use crate::{control::vip::Vip, datapath::kernel, privilege};

/// Kernel, BPF and rights.
pub(super) fn findings() -> Vec<Finding> {
    vec![kernel(), btf(), jit(), bpffs(), rights()]
}

/// Sysctls that only matter where replies of these services run through this host, by these interfaces.
pub(super) fn forwarding(nat: &[Vip], interfaces: &[String]) -> Vec<Finding> {
    let [v4, v6] = [true, false].map(|v4| nat.iter().any(|vip| vip.address.is_ipv4() == v4));
    let mut findings = Vec::new();
    if v4 {
        findings.push(reverse_path(interfaces));
        findings.push(forwards("net/ipv4/ip_forward"));
    }
    if v6 {
        findings.push(forwards("net/ipv6/conf/all/forwarding"));
    }
    findings
}

/// The kernel takes the stricter of "all" and the interface's own (Documentation/networking/ip-sysctl.rst).
fn reverse_path(interfaces: &[String]) -> Finding {
    let names = interfaces.iter().map(String::as_str).chain(["all"]);
    let sysctls = names.map(|name| format!("net/ipv4/conf/{name}/rp_filter"));
    let strict = |sysctl: &String| setting(sysctl).as_deref() == Some("1");
    let Some(sysctl) = sysctls.into_iter().find(strict) else { return Finding::ok("rp_filter", "not strict") };
    Finding::bad(
        Level::Warn,
        "rp_filter",
        "strict: replies of nat backends that the program passes up are dropped by the kernel",
        Some(format!("sysctl -w {sysctl}=2")),
    )
}

fn forwards(sysctl: &'static str) -> Finding {
    if setting(sysctl).as_deref() == Some("1") {
        return Finding::ok(sysctl, "on");
    }
    Finding::bad(
        Level::Warn,
        sysctl,
        "off: fragments and errors for nat flows that the program leaves to the kernel go no further",
        Some(format!("sysctl -w {sysctl}=1")),
    )
}

/// By its name with slashes: those of interfaces may have dots.
fn setting(sysctl: &str) -> Option<String> {
    read(&format!("/proc/sys/{sysctl}"))
}

fn kernel() -> Finding {
    judge_kernel(&kernel::release().unwrap_or_default())
}

fn judge_kernel(release: &str) -> Finding {
    if !kernel::is_too_old(release) {
        return Finding::ok("kernel", release);
    }
    let detail = format!("Linux {release} is too old: the datapath needs {} or later", kernel::OLDEST);
    Finding::bad(Level::Fail, "kernel", detail, None)
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Finding::ok("btf", "the kernel describes its types")
    } else {
        Finding::bad(Level::Warn, "btf", "the kernel does not describe its types: bpftool shows less", None)
    }
}

fn jit() -> Finding {
    match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
        Some("0") => Finding::bad(
            Level::Warn,
            "jit",
            "off: programs are interpreted, many times slower",
            Some("sysctl -w net.core.bpf_jit_enable=1".to_owned()),
        ),
        Some(_) => Finding::ok("jit", "on"),
        // The file is readable by root only on some kernels, and missing where the JIT is always on.
        None => Finding::ok("jit", "always on, or not to be seen from here"),
    }
}

fn bpffs() -> Finding {
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf") && line.contains(" bpf "));
    if mounted {
        Finding::ok("bpffs", "mounted at /sys/fs/bpf")
    } else {
        Finding::bad(
            Level::Warn,
            "bpffs",
            "not mounted at /sys/fs/bpf; ebb run mounts it",
            Some("mount -t bpf bpf /sys/fs/bpf".to_owned()),
        )
    }
}

fn rights() -> Finding {
    let missing = privilege::missing();
    if missing.is_empty() {
        return Finding::ok("rights", "all that the daemon needs");
    }
    Finding::bad(
        Level::Fail,
        "rights",
        format!("without {} the datapath cannot be loaded", missing.join(", ")),
        Some("sudo ebb doctor".to_owned()),
    )
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_a_failure_that_names_the_oldest() {
        let finding = judge_kernel("5.10.0-30-amd64");
        assert_eq!(finding.level, Level::Fail);
        assert_eq!(finding.detail, "Linux 5.10.0-30-amd64 is too old: the datapath needs 6.1 or later");
        assert_eq!(judge_kernel("6.1.0-56-amd64").level, Level::Ok);
    }

    #[test]
    fn this_machine_has_a_kernel() {
        assert!(kernel().detail.starts_with(|c: char| c.is_ascii_digit()));
    }
}
