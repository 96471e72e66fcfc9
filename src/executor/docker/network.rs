//! The network of a cell that asks for one, and may have it: a bridge of its own, made before the cell and removed after it.
//!
//! Its name derives from the cell's, and its labels are the cell's: so it is found and removed by whoever finds what a dead process
//! left. It keeps cells apart from each other, and nothing apart from the host; docs/policy.md says so.

use bollard::models::NetworkCreateRequest;
use std::collections::HashMap;

/// Behind the cell's name.
const SUFFIX: &str = "-net";

/// The name of a cell's network.
pub(super) fn name(cell: &str) -> String {
    format!("{cell}{SUFFIX}")
}

/// The cell that a network is for; `None` when it is nobody's.
pub(super) fn cell(network: &str) -> Option<&str> {
    network.strip_suffix(SUFFIX)
}

/// What the engine is asked for.
pub(super) fn request(name: &str, labels: HashMap<String, String>) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        // Nobody but the cell is on it; should somebody be put there by hand, they do not hear each other.
        options: Some(HashMap::from([("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned())])),
        enable_ipv6: Some(false),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_known_from_a_cell_by_its_name() {
        let owner = "0a1b2c3d".parse().expect("an owner");
        let attempt = crate::job::AttemptId::new("0190b2d4-0000-7000-8000-000000000001".parse().expect("an id"), 1);
        let of_cell = attempt.cell_name(&owner);
        assert_eq!((cell(&of_cell), cell(&name(&of_cell))), (None, Some(of_cell.as_str())));
    }
}
