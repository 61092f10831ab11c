//! Who holds the places of remote control: no one address has all of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// How many connections each address has, by address; an IPv6 network of 64 bits counts as one, since whoever is in it has any
/// address of it.
#[derive(Debug)]
pub(super) struct Shares {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

impl Shares {
    /// At most so many for each.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// Another place for the address, until it is dropped; `None` if it has all that it may.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let holder = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(holder).or_default();
        if *count == self.most {
            return None;
        }
        *count += 1;
        Some(Place { shares: Arc::clone(self), holder })
    }
}

/// A place that is held.
#[derive(Debug)]
pub(super) struct Place {
    shares: Arc<Shares>,
    holder: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share_and_nothing_is_kept_of_who_went() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().expect("an address"));
        let first = take("10.0.0.1").expect("a place");
        let second = take("::ffff:10.0.0.1").expect("a place, for the same");
        assert!(take("10.0.0.1").is_none());
        let others = [take("10.0.0.2"), take("fd00::1"), take("fd00::2"), take("fd00:0:0:1::1")];
        assert!(others.iter().all(Option::is_some) && take("fd00::3").is_none());
        drop(first);
        let third = take("10.0.0.1");
        assert!(third.is_some() && take("10.0.0.1").is_none());
        drop((second, third, others));
        assert!(shares.held.lock().expect("nobody panicked").is_empty());
    }
}
