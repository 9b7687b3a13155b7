//! The machine types that an environment names for its GPUs.

use textnlp_provider::component::GpuPool;

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
        let cause = format!("{} machine types are listed, and a pool of this provider has {most}", pool.machines.len());
        wrong.push((cause, format!("write `machines: [{}]`", pool.machines[..most].join(", "))));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::GpuSize;

    use super::*;

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
                "4 machine types are listed, and a pool of this provider has 1",
            ]
        );
    }
}
