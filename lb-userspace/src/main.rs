//! The `ebb` binary.

fn main() -> std::process::ExitCode {
    lb_userspace::cli::main(std::env::args_os())
}
