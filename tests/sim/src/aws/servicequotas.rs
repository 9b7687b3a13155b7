//! Service Quotas: what the other services' quotas are.

use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Quota, Scope, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "servicequotas",
    model: "service-quotas",
    operations: &[("GetAWSDefaultServiceQuota", default), ("GetServiceQuota", applied), ("ListServiceQuotas", listed)],
    quotas: VCPUS,
    ledger: LEDGER,
};

/// vCPUs of machines, by family and by how they are bought. A new account may have none with a GPU.
const VCPUS: &[Quota] = &[
    vcpus("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 64.0),
    vcpus("L-DB2E81BA", "Running On-Demand G and VT instances", 0.0),
    vcpus("L-417A185B", "Running On-Demand P instances", 0.0),
    vcpus("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 64.0),
    vcpus("L-3819A6DF", "All G and VT Spot Instance Requests", 0.0),
    vcpus("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", 0.0),
    vcpus("L-C4BD4855", "All P5 Spot Instance Requests", 0.0),
];

const fn vcpus(code: &'static str, name: &'static str, value: f64) -> Quota {
    Quota { service: "ec2", code, name, value, adjustable: true }
}

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "servicequotas",
        what: "GetServiceQuota gives the account's own value, and the default of a quota that was never raised",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html",
        ),
    },
    Behaviour {
        service: "servicequotas",
        what: "an unknown quota is NoSuchResourceException",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html",
        ),
    },
];

fn applied(world: &mut World, call: &Call) -> Result<Value, Fault> {
    answer(call, |quota| world.quotas.of(&Scope::new(&call.account, &call.region), quota))
}

fn default(_: &mut World, call: &Call) -> Result<Value, Fault> {
    answer(call, |quota| quota.value)
}

fn all() -> impl Iterator<Item = &'static Quota> {
    super::SERVICES.iter().flat_map(|one| one.quotas)
}

fn listed(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let scope = Scope::new(&call.account, &call.region);
    let of_service = all().filter(|quota| quota.service == call.text("ServiceCode"));
    let items = of_service.map(|quota| shown(call, quota, world.quotas.of(&scope, quota))).collect();
    call.page("Quotas", items, Fault::new("InvalidPaginationTokenException", "Invalid NextToken"))
}

fn answer(call: &Call, value: impl Fn(&Quota) -> f64) -> Result<Value, Fault> {
    let (service, code) = (call.text("ServiceCode"), call.text("QuotaCode"));
    let mut all = all();
    let Some(quota) = all.find(|quota| quota.service == service && quota.code == code) else {
        return Err(Fault::new("NoSuchResourceException", format!("There is no quota {code} of {service}")));
    };
    Ok(json!({ "Quota": shown(call, quota, value(quota)) }))
}

fn shown(call: &Call, quota: &Quota, value: f64) -> Value {
    let (service, code) = (quota.service, quota.code);
    json!({
        "ServiceCode": service,
        "QuotaCode": code,
        "QuotaName": quota.name,
        "QuotaArn": format!("arn:aws:servicequotas:{}:{}:{service}/{code}", call.region, call.account),
        "Value": value,
        "Unit": "None",
        "Adjustable": quota.adjustable,
        "GlobalQuota": false,
    })
}
