//! The machine types that an environment names for its GPUs.

use serde_json::Value;
use textnlp_provider::component::GpuPool;

/// The most machine types of a pool of GKE or AKS, which has one: each of them may wait for half an hour in each zone.
pub const MOST_MACHINES: usize = 4;

/// An attribute of a pool that depends on its machine: that of the only one, else those of all in their order.
pub fn by_machine(each: impl Iterator<Item = Value>) -> Value {
    let mut all: Vec<Value> = each.collect();
    if all.len() == 1 { all.remove(0) } else { Value::Array(all) }
}

/// Such an attribute, one value a machine.
pub fn of_machines(attribute: Option<&Value>) -> &[Value] {
    match attribute {
        Some(Value::Array(all)) => all,
        one => one.map(std::slice::from_ref).unwrap_or_default(),
    }
}

/// The names of machines, best first.
pub fn machine_names(attribute: Option<&Value>) -> Vec<&str> {
    of_machines(attribute).iter().filter_map(Value::as_str).collect()
}

/// Whether such an attribute of a pool is one of the wanted ones.
pub fn has_machine(wanted: &Value, seen: &Value) -> bool {
    of_machines(Some(wanted)).contains(seen)
}

/// What is wrong with the machines of a pool: causes and fixes. `known` are the provider's machines with GPUs and the number of these,
/// `most` the types that a pool can have. Pure.
pub fn wrong_machines<'k>(
    pool: &GpuPool,
    most: usize,
    known: impl Iterator<Item = (&'k str, u32)> + Clone,
) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    let of_size = pool.size.gpus();
    if pool.machines.is_empty() && pool.gpus() != of_size {
        let cause = format!("`per_machine` is {}, and the machine of `size: {}` has {of_size}", pool.gpus(), pool.size);
        wrong.push((cause, "remove `per_machine`, or name a machine type with as many in `machines`".to_owned()));
    }
    for (place, name) in pool.machines.iter().enumerate() {
        match known.clone().find(|(one, _)| one == name) {
            None => {
                let known: Vec<&str> = known.clone().map(|(one, _)| one).collect();
                let cause = format!("`{name}` is no known machine type with GPUs of this provider");
                wrong.push((cause, format!("use one of `{}`", known.join("`, `"))));
            }
            Some((_, gpus)) if gpus != pool.gpus() => {
                let cause = format!("`{name}` has {gpus} GPUs, and each machine is counted with {}", pool.gpus());
                wrong.push((cause, format!("write `per_machine: {gpus}`, or use another machine type")));
            }
            Some(_) if pool.machines[..place].contains(name) => {
                wrong.push((format!("`{name}` is listed twice"), "remove one of them".to_owned()));
            }
            Some(_) => {}
        }
    }
    if pool.machines.len() > most {
        let cause = format!(
            "{} machine types are listed, and a pool of this provider takes at most {most}",
            pool.machines.len()
        );
        wrong.push((cause, format!("write `machines: [{}]`", pool.machines[..most].join(", "))));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::GpuSize;

    use super::*;

    #[test]
    fn attributes_of_one_machine_and_of_several_are_read_alike() {
        let (one, several) = (by_machine(["a"].map(Value::from).into_iter()), ["a", "b"].map(Value::from));
        assert_eq!(one, "a");
        let several = by_machine(several.into_iter());
        assert_eq!((machine_names(Some(&one)), machine_names(Some(&several))), (vec!["a"], vec!["a", "b"]));
        assert!(machine_names(None).is_empty());
        assert!(
            has_machine(&several, &"b".into()) && has_machine(&one, &"a".into()) && !has_machine(&one, &"b".into())
        );
    }

    #[test]
    fn every_wrong_machine_type_is_reported() {
        let known = [("one", 1), ("four", 4)];
        let wrong = |machines: &[&str], per_machine, most| -> Vec<String> {
            let machines = machines.iter().map(ToString::to_string).collect();
            let pool = GpuPool { machines, per_machine, ..GpuPool::of(GpuSize::Small, 1) };
            wrong_machines(&pool, most, known.into_iter()).into_iter().map(|(cause, _)| cause).collect()
        };
        assert!(wrong(&[], None, 1).is_empty());
        assert!(wrong(&[], Some(1), 1).is_empty());
        assert_eq!(wrong(&[], Some(4), 1), ["`per_machine` is 4, and the machine of `size: small` has 1"]);
        assert!(wrong(&["one"], None, 1).is_empty());
        assert!(wrong(&["four"], Some(4), 1).is_empty());
        assert_eq!(
            wrong(&["four", "two", "one", "one"], None, 1),
            [
                "`four` has 4 GPUs, and each machine is counted with 1",
                "`two` is no known machine type with GPUs of this provider",
                "`one` is listed twice",
                "4 machine types are listed, and a pool of this provider takes at most 1",
            ]
        );
    }
}
