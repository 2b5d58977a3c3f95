//! How many connections one address may have that have not shown a proxy's certificate. Without it one machine could take all
//! places of a door, and nobody else would come in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// The connections of a door, by address; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Guests {
    most: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    refused: Arc<AtomicU64>,
}

impl Guests {
    /// At most so many of one address.
    pub(super) fn new(most: usize) -> Self {
        Self { most, by_address: Arc::default(), refused: Arc::default() }
    }

    /// A place for one more connection of an address, or none, which is said in the log less and less often.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Guest> {
        let address = address.to_canonical();
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.most {
            let refused = self.refused.fetch_add(1, Relaxed) + 1;
            if refused.is_power_of_two() {
                let most = self.most;
                tracing::warn!(%address, most, refused, "an address has too many connections, further ones are closed");
            }
            return None;
        }
        *count += 1;
        Some(Guest { guests: self.clone(), address })
    }
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Guests,
    address: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut by_address = self.guests.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_places_and_gets_them_back() {
        let guests = Guests::new(2);
        let [here, there] = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let held = [guests.enter(here).unwrap(), guests.enter(here).unwrap()];
        assert!(guests.enter(here).is_none());
        assert!(guests.enter("::ffff:192.0.2.1".parse().unwrap()).is_none(), "it is the same address");
        assert!(guests.enter(there).is_some());
        drop(held);
        assert!(guests.enter(here).is_some());
        assert!(guests.by_address.lock().is_empty());
    }
}
