//! Builds the eBPF object and leaves it in `OUT_DIR`, from where `src/datapath/object.rs` embeds it.

#[path = "build/ebpf.rs"]
mod ebpf;

fn main() {
    ebpf::embed("lb-ebpf", "lb-ebpf");
}
