//! The embedded object is one that this kernel's verifier accepts, with room to spare.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, programs::Xdp};
use lb_userspace::datapath::{kernel, object::OBJECT};

/// Instructions that the verifier may look at: it gives up at a million, and what the next change adds is not known.
const MOST_INSTRUCTIONS: u32 = 800_000;

#[test]
fn the_embedded_programs_load() -> Result<()> {
    let mut object = Ebpf::load(OBJECT).context("the object's maps need root and a kernel with BTF")?;
    for name in ["ebb_xdp", "ebb_decap"] {
        let program: &mut Xdp = object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("the verifier refuses {name}"))?;
        let info = program.info()?;
        let instructions = info.verified_instruction_count().context("this kernel does not tell")?;
        let release = kernel::release()?;
        // Not by the macro, whose output the test runner keeps: `cargo xtask test` repeats this line, which is one of its own
        // also where the runner has begun one.
        writeln!(
            io::stdout(),
            "\nverifier: Linux {release} looked at {instructions} instructions of {name}, and made {} bytes of machine code",
            info.size_jitted()
        )?;
        ensure!(instructions <= MOST_INSTRUCTIONS, "{instructions} instructions of {name} for the verifier");
    }
    Ok(())
}
