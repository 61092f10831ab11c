//! The embedded object is one that this kernel's verifier accepts.

use aya::{Ebpf, programs::Xdp};
use lb_userspace::datapath::object::OBJECT;

#[test]
fn the_embedded_program_loads() {
    let mut object = Ebpf::load(OBJECT).expect("the object's maps need root and a kernel with BTF");
    let program: &mut Xdp = object
        .program_mut("ebb_xdp")
        .expect("the object has a program ebb_xdp")
        .try_into()
        .expect("ebb_xdp is an XDP program");
    program.load().expect("the verifier accepts ebb_xdp");
}
