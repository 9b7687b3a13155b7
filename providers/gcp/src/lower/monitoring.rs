//! The cost budget, which the billing account of the project has. Alerts are rules in the cluster.

use serde_json::{Value, json};
use textnlp_cloud::budget::{Warning, warnings};
use textnlp_provider::component::Monitoring;

use super::Lowering;
use crate::kinds::budgets::{BUDGET, MOST_OF_NAME};
use crate::names;
use crate::service::Service;

/// The services that a budget needs besides those of the network.
const NEEDED: [Service; 2] = [Service::BillingBudgets, Service::CloudBilling];

impl Lowering<'_> {
    pub(super) fn monitoring(&mut self, monitoring: &Monitoring) {
        // A budget of nothing is never kept.
        let Some(budget) = monitoring.budget.as_ref().filter(|budget| budget.monthly > 0.0) else { return };
        let apis = NEEDED.map(Service::api);
        let services = self.part("services", "gcp.services", self.of_project(json!({ "services": apis })));
        let notification = |warning: Warning| {
            let about = if warning.is_forecast { "FORECASTED_SPEND" } else { "CURRENT_SPEND" };
            json!({ "about": about, "percent": warning.percent })
        };
        let notifications: Vec<Value> = warnings(budget).into_iter().map(notification).collect();
        let spec = json!({
            "name": names::of_site(self.site, MOST_OF_NAME),
            "limit": budget.monthly,
            "currency": budget.currency,
            "projects": [self.site.account],
            "notifications": notifications,
        });
        self.part("budget", BUDGET, self.of_project(spec));
        self.after(services);
    }
}
