//! Every metric family of the control plane, beside those of the process. No label has a value from outside.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use waffles_runtime::admin::Gates;
use waffles_runtime::telemetry::Metrics;

use crate::audit::Audit;
use crate::discovery::Discovery;
use crate::proxies::Proxies;

/// Reads the figures when they are asked for.
#[derive(Debug)]
struct Figures {
    discovery: Discovery,
    proxies: Proxies,
    gates: Gates,
}

/// Enters the families.
pub(crate) fn register(
    metrics: &Metrics,
    audit: &Audit,
    proxies: &Proxies,
    discovery: &Discovery,
    gates: &Gates,
) {
    let figures = Figures { discovery: discovery.clone(), proxies: proxies.clone(), gates: gates.clone() };
    metrics.register(|registry| {
        registry.register(
            "waffles_audit_batches",
            "Batches of audit records taken in from proxies",
            audit.batches().clone(),
        );
        registry.register(
            "waffles_audit_records",
            "Audit records taken in from proxies, repeated ones included",
            audit.records().clone(),
        );
        registry.register(
            "waffles_audit_chain_breaks",
            "Audit records of proxies that did not follow from the one before them",
            audit.breaks().clone(),
        );
        registry.register_collector(Box::new(figures));
    });
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let number = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let proxies = self.proxies.summary();
        for (name, help, value) in [
            (
                "waffles_configuration_revision",
                "The revision that proxies are told",
                self.discovery.revision(),
            ),
            ("waffles_proxies_connected", "Proxies that hold a configuration stream here", proxies.connected),
            ("waffles_proxies_refusing", "Of those, proxies that refuse a resource", proxies.refusing),
            ("waffles_proxies_lag_revisions", "How far the last of those is behind", proxies.most_lag),
            (
                "waffles_changes_held_back",
                "Changes that a proxy refused and others of its group are not sent",
                self.discovery.held_back(),
            ),
            ("waffles_ready", "Whether every gate of readiness is open", u64::from(self.gates.is_ready())),
        ] {
            let gauge = number(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
