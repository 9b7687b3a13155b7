//! `plan --compare`: what the same environment costs on several providers, by list prices. No provider is asked.

use std::fmt::Write as _;

use textnlp_orchestrator::environment::model::Environment;
use textnlp_orchestrator::environment::{self, Change, FlagValue, LoadError, Severity, is_region};
use textnlp_orchestrator::plan::{Cost, ServiceCost};
use textnlp_orchestrator::report::table::Table;
use textnlp_provider::{Problem, Problems, priced_regions};
use textnlp_service::compare::cost;

use super::prelude::*;
use crate::clouds::{self, PROVIDERS, Row};
use crate::session::invalid;
use crate::{plan_view, table_view};

/// A provider, and the region of its sites if it was typed.
struct Compared<'a> {
    row: &'static Row,
    region: Option<&'a str>,
}

/// The environment on one provider.
struct Offer {
    provider: &'static str,
    regions: Vec<String>,
    /// What differs from the environment as it is.
    changes: Vec<Change>,
    /// Its cost, or why it is refused.
    cost: Result<Cost, Vec<Problem>>,
}

impl Offer {
    /// Only those are ranked of which no price is missing: a missing one looks cheap. A refusal is no offer.
    fn rank(&self) -> (u8, u64) {
        match &self.cost {
            Ok(cost) if cost.is_comparable() => (0, cost.known_micros),
            Ok(_) => (1, 0),
            Err(_) => (2, 0),
        }
    }
}

/// `plan --compare`.
pub fn compare(session: &Session, typed: &[String], console: Console) -> Result<Success, Failure> {
    let global = &session.global;
    if global.site.is_some() || global.provider.is_some() {
        let error = anyhow::anyhow!("--compare is for all sites, on the providers that it names");
        return Err(Failure::usage("conflicting_flags", error).hint("remove --site and --provider"));
    }
    let mut compared: Vec<Compared<'_>> = Vec::new();
    for typed in typed {
        let one = Compared::parse(typed)?;
        if !compared.iter().any(|other| other.is_same(&one)) {
            compared.push(one);
        }
    }
    let chosen = session.load(console)?;
    let offers = compared.iter().map(|compared| offer(session, &chosen, compared));
    let mut offers = offers.collect::<Result<Vec<_>, _>>()?;
    offers.sort_by_key(Offer::rank);
    let budget = &chosen.loaded.environment.budget;
    let text = text(&offers, chosen.scope.name.as_str(), &budget.currency);
    let document = json!({
        "environment": chosen.scope.name, "currency": budget.currency,
        "providers": offers.iter().map(document).collect::<Vec<_>>(),
    });
    let success = Success::new(text, document);
    Ok(if offers.iter().all(|offer| offer.cost.is_err()) { success.exit(Exit::Failed) } else { success })
}

impl<'a> Compared<'a> {
    /// Reads `aws` or `aws=eu-central-1`.
    fn parse(typed: &'a str) -> Result<Self, Failure> {
        let (name, region) = typed.split_once('=').map_or((typed, None), |(name, region)| (name, Some(region)));
        let Some(row) = PROVIDERS.iter().find(|row| row.name == name) else {
            let names: Vec<&str> = PROVIDERS.iter().map(|row| row.name).collect();
            let error = anyhow::anyhow!("there is no provider `{name}`");
            return Err(Failure::usage("no_such_provider", error).hint(format!("the providers: {}", names.join(", "))));
        };
        if let Some(region) = region.filter(|region| !is_region(region)) {
            let error = anyhow::anyhow!("`{region}` is not the name of a region");
            return Err(Failure::usage("invalid_region", error).hint("write PROVIDER=REGION, such as gcp=us-central1"));
        }
        if let (Some(region), Some(assumed)) = (region, &row.assumed) {
            let priced = priced_regions((assumed.prices)());
            if !priced.contains(region) {
                let error = anyhow::anyhow!("no prices of {name} in `{region}` are recorded");
                let regions = priced.into_iter().collect::<Vec<_>>().join(", ");
                return Err(Failure::usage("no_prices", error).hint(format!("choose one of {regions}")));
            }
        }
        Ok(Self { row, region })
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.row.name, self.region) == (other.row.name, other.region)
    }
}

/// The environment on a provider.
fn offer(session: &Session, chosen: &ChosenEnvironment, compared: &Compared<'_>) -> Result<Offer, Failure> {
    let Compared { row, region } = compared;
    let base = &chosen.loaded;
    let mut offer = Offer { provider: row.name, regions: Vec::new(), changes: Vec::new(), cost: Err(Vec::new()) };
    let loaded = match session.loaded_with(&chosen.scope.name, flags(&base.environment, row, *region)) {
        Ok(loaded) => loaded,
        Err(LoadError::Invalid(report)) => {
            let refused = report.0.iter().filter(|problem| problem.severity <= Severity::Refusal);
            offer.cost = Err(refused.map(as_problem).collect());
            return Ok(offer);
        }
        Err(error) => return Err(invalid(error, &session.again())),
    };
    offer.changes = environment::diff(base, &loaded);
    offer.changes.retain(|change| !change.path.ends_with(".provider"));
    let refused: Vec<Problem> = loaded.report.refusals().map(as_problem).collect();
    let mut environment = loaded.environment;
    offer.regions = environment.sites.iter().map(|site| site.region.clone()).collect();
    offer.regions.sort();
    offer.regions.dedup();
    complete(&mut environment, row);
    offer.cost = match refused.is_empty() {
        true => cost(&chosen.scope, &environment).map_err(|Problems(found)| found),
        false => Err(refused),
    };
    Ok(offer)
}

/// The values that move every site to a provider. What names objects of another provider is left out.
fn flags(base: &Environment, row: &Row, region: Option<&str>) -> Vec<FlagValue> {
    let flag = |path: String, value: Value| FlagValue { flag: "--compare".to_owned(), path, value };
    let mut flags = vec![flag("sites[*].provider".to_owned(), json!(row.name))];
    let assumed = row.assumed.as_ref().map_or("local", |assumed| assumed.region);
    for (i, site) in base.sites.iter().enumerate() {
        let moves = site.provider != row.name;
        if moves {
            flags.extend(["account", "existing"].map(|field| flag(format!("sites[{i}].{field}"), Value::Null)));
        }
        if let Some(region) = region.or(moves.then_some(assumed)) {
            flags.push(flag(format!("sites[{i}].region"), json!(region)));
        }
    }
    if base.primary().is_some_and(|home| home.provider != row.name) {
        flags.extend(["traffic.existing", "registry"].map(|path| flag(path.to_owned(), Value::Null)));
    }
    flags
}

/// Fills in what providers ask for and no price depends on: accounts, the registry that images are pushed to, and the name that clients
/// use.
fn complete(environment: &mut Environment, row: &Row) {
    let Some(assumed) = &row.assumed else { return };
    clouds::assume_accounts(environment);
    if environment.sites.iter().any(|site| site.runs_image() && site.cluster.image.is_none()) {
        let home = environment.primary().map(|home| (home.account.as_deref().unwrap_or_default(), &*home.region));
        let registry = home.map(|(account, region)| (assumed.registry)(account, region));
        environment.registry.url = registry;
    }
    if environment.sites.iter().any(|site| site.is_in_cluster() && site.cluster.address.is_none()) {
        environment.traffic.domain.get_or_insert_with(|| "textnlp.example.com".to_owned());
    }
}

fn as_problem(problem: &environment::Problem) -> Problem {
    Problem::new(problem.path.as_str(), problem.cause.as_str(), problem.fix.as_str())
}

fn text(offers: &[Offer], name: &str, currency: &str) -> String {
    let mut rows = Vec::new();
    let (mut unpriced, mut refused, mut changed) = (String::new(), String::new(), String::new());
    let mut unranked: Vec<String> = Vec::new();
    for Offer { provider, regions, changes, cost } in offers {
        let head =
            |what: &str, amount: String| vec![(*provider).to_owned(), regions.join(", "), what.to_owned(), amount];
        match cost {
            Ok(cost) => {
                let all = ServiceCost { known_micros: cost.known_micros, is_partial: !cost.unknown.is_empty() };
                rows.push(head("total", plan_view::amount_text(all)));
                let services = cost.services().into_iter();
                rows.extend(services.map(|(service, part)| {
                    vec![String::new(), String::new(), service.to_owned(), plan_view::amount_text(part)]
                }));
                if !cost.is_comparable() {
                    unranked.push(format!("{provider} ({})", regions.join(", ")));
                }
                for (reason, count) in cost.unknown_reasons() {
                    let times = if count > 1 { format!(", {}", counted(count, "amount")) } else { String::new() };
                    let _ = write!(unpriced, "\n  {provider}: {reason}{times}");
                }
                for site in cost.unpriced_hosts() {
                    let _ =
                        write!(unpriced, "\n  {provider}: the machines of site {site}: set `budget.machines.{site}`");
                }
            }
            Err(problems) => {
                rows.push(head("refused", "-".to_owned()));
                for problem in problems {
                    let _ = write!(refused, "\n  {provider}: {problem}");
                }
            }
        }
        let shown = |value: &Option<Value>| value.as_ref().map_or("—".to_owned(), ToString::to_string);
        for change in changes {
            let _ =
                write!(changed, "\n  {provider}: {} {} → {}", change.path, shown(&change.left), shown(&change.right));
        }
    }
    let columns = ["provider", "region", "service", &format!("{currency} a month")].map(str::to_owned).to_vec();
    let mut notes = Vec::new();
    if offers.iter().any(|offer| offer.rank().0 == 0) {
        notes.push("the cheapest first".to_owned());
    }
    if !unranked.is_empty() {
        notes.push(format!("not ranked where prices are missing: {}", unranked.join(", ")));
    }
    let mut text = format!("Cost of {name} by list prices");
    if !notes.is_empty() {
        let _ = write!(text, ", {}", notes.join("; "));
    }
    text += &table_view::lines(&Table { title: "", columns, rows });
    for (title, lines) in [("Not priced", unpriced), ("Refused", refused), ("Other than in the environment", changed)] {
        if !lines.is_empty() {
            let _ = write!(text, "\n{title}:{lines}");
        }
    }
    text
}

fn document(offer: &Offer) -> Value {
    let Offer { provider, regions, changes, cost } = offer;
    let refused = cost.as_ref().err().map(Vec::as_slice).unwrap_or_default();
    json!({
        "provider": provider, "regions": regions, "changes": changes, "cost": cost.as_ref().ok(),
        "ranked": cost.as_ref().is_ok_and(Cost::is_comparable),
        "refused": plan_view::problems(refused),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use textnlp_provider::{CostLine, ResourceId};

    use super::*;

    fn offer(provider: &'static str, region: &str, known_micros: u64, lines: &[CostLine]) -> Offer {
        let id: ResourceId = "main/server".parse().unwrap();
        let cost = Cost {
            lines: lines.iter().map(|line| (id.clone(), line.clone())).collect(),
            currency: "USD".to_owned(),
            known_micros,
            machines: BTreeMap::new(),
            unknown: if lines.is_empty() { BTreeSet::new() } else { [id.clone()].into() },
            recorded_micros: None,
        };
        Offer { provider, regions: vec![region.to_owned()], changes: Vec::new(), cost: Ok(cost) }
    }

    #[test]
    fn cheapest_is_first_and_what_lacks_a_price_is_not_ranked() {
        let unpriced = CostLine::unpriced("VMs", "3 machines", "no price is recorded");
        let refused = Offer { cost: Err(Vec::new()), ..offer("local", "local", 0, &[]) };
        let mut offers = vec![
            refused,
            offer("aws", "us-east-1", 1_000_000, std::slice::from_ref(&unpriced)),
            offer("gcp", "us-central1", 9_000_000, &[]),
            offer("azure", "eastus", 5_000_000, &[]),
            offer("aws", "sa-east-1", 2_000_000, &[unpriced]),
        ];
        offers.sort_by_key(Offer::rank);
        let order: Vec<&str> = offers.iter().map(|offer| offer.provider).collect();
        assert_eq!(order, ["azure", "gcp", "aws", "aws", "local"]);
        let first = |offers: &[Offer]| text(offers, "shop", "USD").lines().next().unwrap_or_default().to_owned();
        let missing = "not ranked where prices are missing: aws (us-east-1), aws (sa-east-1)";
        assert_eq!(first(&offers), format!("Cost of shop by list prices, the cheapest first; {missing}"));
        assert_eq!(first(&offers[2..4]), format!("Cost of shop by list prices, {missing}"));
        assert_eq!(first(&offers[..2]), "Cost of shop by list prices, the cheapest first");
        assert_eq!(first(&offers[4..]), "Cost of shop by list prices", "a refusal is no offer");
    }

    #[test]
    fn amounts_of_one_resource_with_the_same_reason_are_counted_as_amounts() {
        let stored = || CostLine::unknown("Storage", "stored models", "by use");
        let said = text(&[offer("gcp", "us-central1", 1_000_000, &[stored(), stored()])], "shop", "USD");
        assert!(said.contains("gcp: Storage: by use, 2 amounts") && !said.contains("resource"), "{said}");
    }
}
