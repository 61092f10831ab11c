//! Builds the benchmark's eBPF object and leaves it in `OUT_DIR`, from where `src/bench/object.rs` embeds it.

#[path = "../lb-userspace/build/ebpf.rs"]
mod ebpf;

fn main() {
    ebpf::embed("ebb-tests-ebpf", "tests/ebpf");
}
