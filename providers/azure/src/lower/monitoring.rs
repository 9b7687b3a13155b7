//! The cost budget, which the subscription has. Alerts are rules in the cluster.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::budget::{Warning, mailboxes, warnings};
use textnlp_provider::component::{Monitoring, ReceiverAddress};

use super::Lowering;
use crate::kinds::budgets::{BUDGET, CONSUMPTION};
use crate::names;

/// The most characters of a name
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftconsumption>).
const MOST_OF_NAME: usize = 63;
/// The most mailboxes of a notification (<https://learn.microsoft.com/rest/api/consumption/budgets/create-or-update>).
const MOST_MAILBOXES: usize = 50;
/// The role at the subscription whose holders get each notification: one has to have a recipient
/// (hashicorp/terraform-provider-azurerm#12471).
const RECIPIENTS: &str = "Owner";

impl Lowering<'_> {
    pub(super) fn monitoring(&mut self, monitoring: &Monitoring) {
        // A budget of nothing is never kept.
        let Some(budget) = monitoring.budget.as_ref().filter(|budget| budget.monthly > 0.0) else { return };
        let plain = monitoring.receivers.values().filter_map(|address| match address {
            ReceiverAddress::Plain(text) => mailboxes(text.trim()),
            // A budget shows its recipients.
            ReceiverAddress::Secret(_) => None,
        });
        let emails: BTreeSet<String> = plain.flatten().collect();
        if emails.len() > MOST_MAILBOXES {
            let cause = format!("they have {} mailboxes, and {MOST_MAILBOXES} are the most of a budget", emails.len());
            return self.problem("receivers", cause, "use a mailing list");
        }
        let notification = |warning: Warning| {
            let about = if warning.is_forecast { "Forecasted" } else { "Actual" };
            json!({ "about": about, "percent": warning.percent, "emails": emails, "roles": [RECIPIENTS] })
        };
        let notifications: Vec<Value> = warnings(budget).into_iter().map(notification).collect();
        let subscription = &self.site.account;
        let provider = json!({ "subscription": subscription, "name": CONSUMPTION });
        let spec = json!({
            "subscription": subscription,
            "name": names::of(self.site, "budget", MOST_OF_NAME),
            "limit": budget.monthly,
            "currency": budget.currency,
            "notifications": notifications,
        });
        let provider = self.part("provider", "azure.provider", provider);
        self.part("budget", BUDGET, spec);
        self.after(provider);
    }
}
