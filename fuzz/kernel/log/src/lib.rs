//! The logging macros of the XDP program, which say nothing here: their arguments are looked at and dropped.
#![no_std]

/// Takes a line at level `warn`.
#[macro_export]
macro_rules! warn {
    ($context:expr, $format:literal $(, $argument:expr)* $(,)?) => {{ let _ = ($context, $format, $(&$argument),*); }};
}

/// Takes a line at level `debug`.
#[macro_export]
macro_rules! debug {
    ($context:expr, $format:literal $(, $argument:expr)* $(,)?) => {{ let _ = ($context, $format, $(&$argument),*); }};
}
