//! `ebb decap`: makes a host a backend of a tunnelled service, without a tunnel device.

use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::DecapArgs,
    failure::{Exit, Failure},
    print::Printer,
    settings,
};
use crate::{
    datapath::{Decap, OpenError},
    privilege,
};

/// Runs until a signal. However the process ends, the kernel detaches the program with it.
pub(super) async fn decap(args: &DecapArgs, print: Printer) -> Result<Exit, Failure> {
    let failed = |error: OpenError| Failure::failed(error.to_string());
    let watch = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")));
    if !privilege::missing().is_empty() {
        return Err(failed(OpenError::Privilege));
    }
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    let decap = Decap::start(&args.interface, settings::mode(args.mode)).map_err(failed)?;
    // To go on and to end takes nothing.
    privilege::renounce()
        .map_err(|error| Failure::failed(format!("cannot give up the rights of the start: {error}")))?;
    let interface = decap.interface();
    print.say(
        interface,
        &format!("taking packets out of their tunnels on {} ({}) until this ends", interface.name, interface.mode),
    )?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(decap);
    Ok(Exit::Done)
}
