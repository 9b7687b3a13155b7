//! The instance types that the provider knows: facts, quotas, images, and which machines serve a [`GpuSize`].

use textnlp_cloud::{NodeTable, NodeType, reserved_cpu};
use textnlp_provider::cluster::Capacity;
use textnlp_provider::settings::{GpuSize, NodeSize};
use textnlp_provider::units::Bytes;

use super::quotas::{self, Quota};

/// The instruction set of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `x86_64`.
    X86,
    /// `arm64`: Graviton.
    Arm,
}

/// How a machine is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Market {
    /// At the list price, until it is deleted.
    OnDemand,
    /// Cheaper; AWS may reclaim it after two minutes' notice.
    Spot,
}

/// A family of instance types.
#[derive(Debug)]
pub struct Family {
    /// The part of the instance type before the dot.
    pub name: &'static str,
    /// The instruction set.
    pub architecture: Architecture,
    /// The model of each GPU, and its memory in MiB.
    pub gpu: Option<(&'static str, u32)>,
    /// The quota that running instances count against.
    pub on_demand: &'static Quota,
    /// The quota that spot instances count against.
    pub spot: &'static Quota,
    /// Whether the provider takes databases of this family.
    pub data: bool,
    /// Where AWS stopped offering it.
    pub withdrawn: Option<&'static str>,
    /// Size, vCPUs, memory in MiB, GPUs; smallest first.
    pub sizes: &'static [(&'static str, u32, u32, u32)],
    /// Where this family's rows are from.
    pub source: &'static str,
}

/// An instance type.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its family.
    pub family: &'static Family,
    /// The part of the instance type after the dot.
    pub size: &'static str,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// GPUs.
    pub gpus: u32,
}

impl Machine {
    /// Its instance type: `g4dn.xlarge`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.family.name, self.size)
    }

    /// It as a node of a cluster.
    pub fn node(&self) -> NodeType {
        NodeType { name: self.name(), vcpus: self.vcpus, memory_mib: self.memory_mib.into() }
    }

    /// Memory of each GPU, in MiB; 0 without one.
    pub fn gpu_memory_mib(&self) -> u32 {
        self.family.gpu.map_or(0, |(_, memory)| memory)
    }

    /// The quota that it counts against, by its vCPUs.
    pub fn quota(&self, market: Market) -> &'static Quota {
        match market {
            Market::OnDemand => self.family.on_demand,
            Market::Spot => self.family.spot,
        }
    }

    /// The `amiType` of an EKS node group: Amazon Linux 2023, with NVIDIA's driver on machines with a GPU.
    /// <https://docs.aws.amazon.com/eks/latest/APIReference/API_Nodegroup.html>
    pub fn ami_type(&self) -> &'static str {
        match (self.family.architecture, self.gpus > 0) {
            (Architecture::X86, false) => "AL2023_x86_64_STANDARD",
            (Architecture::X86, true) => "AL2023_x86_64_NVIDIA",
            (Architecture::Arm, false) => "AL2023_ARM_64_STANDARD",
            (Architecture::Arm, true) => "AL2023_ARM_64_NVIDIA",
        }
    }
}

/// The machine of an instance type. `None` if the table does not have it; AWS may.
pub fn machine(name: &str) -> Option<Machine> {
    let (family, size) = name.split_once('.')?;
    let family = FAMILIES.iter().find(|row| row.name == family)?;
    sizes(family).find(|machine| machine.size == size)
}

/// The machine under a database class: `db.m7g.large` has the vCPUs and the memory of `m7g.large`.
/// <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/Concepts.DBInstanceClass.Summary.html>
pub fn database(class: &str) -> Option<Machine> {
    machine(class.strip_prefix("db.")?).filter(|machine| machine.family.data)
}

/// The machine under a cache node type, and the memory for data in bytes (`maxmemory`) before `reserved-memory-percent`,
/// which is 25 by default.
pub fn cache(node_type: &str) -> Option<(Machine, u64)> {
    let name = node_type.strip_prefix("cache.")?;
    let (_, memory) = CACHE_NODES.iter().find(|(known, _)| *known == name)?;
    Some((machine(name)?, *memory))
}

/// All machines, by family and size.
pub fn all() -> impl Iterator<Item = Machine> {
    FAMILIES.iter().flat_map(sizes)
}

/// The instance types that serve a size class, best first: the required one, then those whose GPUs, memory of each GPU,
/// vCPUs and memory are the same or larger. The required one stays first though AWS may have withdrawn it: what a zone
/// offers, and [`Family::withdrawn`], tell whether to try it.
pub fn candidates(size: GpuSize) -> &'static [&'static str] {
    match size {
        GpuSize::None => NODES.sizes[0].1,
        GpuSize::Small => &["g4dn.xlarge", "g4dn.2xlarge", "g6.xlarge", "g5.xlarge"],
        GpuSize::Medium => &["g4dn.2xlarge", "g6.2xlarge", "g4dn.4xlarge", "g5.2xlarge"],
        // The memory of an L40S is about as fast as that of a V100, and at a lower price; that of an A10G is slower.
        GpuSize::Large => &["p3.2xlarge", "g6e.2xlarge", "g5.4xlarge", "p5.4xlarge"],
        GpuSize::Xlarge => &["p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5en.48xlarge", "p5e.48xlarge"],
    }
}

/// The machines with GPUs whose nodes can run the servers: those of `x86_64` that AWS offers, by family and size.
pub fn gpus() -> impl Iterator<Item = Machine> {
    all().filter(|machine| {
        machine.gpus > 0 && machine.family.architecture == Architecture::X86 && machine.family.withdrawn.is_none()
    })
}

/// The machine under an instance type of SageMaker with GPUs that the servers run on: `ml.g5.xlarge` has those of `g5.xlarge`.
pub fn of_endpoint(instance_type: &str) -> Option<Machine> {
    let name = instance_type.strip_prefix("ml.")?;
    gpus().find(|machine| machine.name() == name)
}

/// The nodes without GPU.
pub static NODES: NodeTable = NodeTable {
    sizes: &[
        (NodeSize::Small, &["m7i.xlarge", "m6i.xlarge"]),
        (NodeSize::Medium, &["m7i.2xlarge", "m6i.2xlarge"]),
        (NodeSize::Large, &["m7i.4xlarge", "m6i.4xlarge"]),
        (NodeSize::Xlarge, &["m7i.8xlarge", "m6i.8xlarge"]),
    ],
    known: || {
        let is_node = |machine: &Machine| machine.gpus == 0 && machine.family.architecture == Architecture::X86;
        all().filter(is_node).map(|machine| machine.node()).collect()
    },
    reserved,
    least_reserved: reserved,
};

/// What the kubelet of EKS's images keeps: of the memory 255 MiB, and 11 MiB for each pod that a node may have
/// (<https://github.com/awslabs/amazon-eks-ami/blob/main/nodeadm/internal/kubelet/config.go>).
fn reserved(node: &NodeType) -> Capacity {
    Capacity { cpu: reserved_cpu(node.vcpus), memory: Bytes((255 + 11 * most_pods(node)) << 20) }
}

/// The most pods of a machine, by its network interfaces and their addresses
/// (<https://github.com/awslabs/amazon-eks-ami/blob/264120506f12b7fb88ecde54418cef140b1e5194/nodeadm/internal/kubelet/eni-max-pods.txt>).
fn most_pods(node: &NodeType) -> u64 {
    /// Those that have another number than most machines with as many vCPUs.
    const OTHERS: &[(&str, u64)] = &[
        ("g4dn.xlarge", 29),
        ("g4dn.2xlarge", 29),
        ("g4dn.4xlarge", 29),
        ("g4dn.8xlarge", 58),
        ("g4dn.16xlarge", 58),
        ("g5.12xlarge", 737),
        ("g5.16xlarge", 234),
        ("g5.48xlarge", 345),
        ("g6e.12xlarge", 292),
        ("g6e.24xlarge", 492),
        ("g6e.48xlarge", 492),
        ("p3.16xlarge", 234),
        ("p5.4xlarge", 118),
        ("p5.48xlarge", 100),
        ("p5e.48xlarge", 100),
        ("p5en.48xlarge", 198),
        ("t3.micro", 4),
        ("t3.small", 11),
        ("t3.medium", 17),
        ("t3.large", 35),
    ];
    let other = OTHERS.iter().find(|(name, _)| *name == node.name).map(|(_, pods)| *pods);
    other.unwrap_or(match node.vcpus {
        0..=2 => 29,
        3..=8 => 58,
        9..=48 => 234,
        _ => 737,
    })
}

fn sizes(family: &'static Family) -> impl Iterator<Item = Machine> {
    let machine = move |&(size, vcpus, memory_mib, gpus)| Machine { family, size, vcpus, memory_mib, gpus };
    family.sizes.iter().map(machine)
}

/// `DescribeInstanceTypes` of AWS as moto 5.2.5 carries it (2026-11); a test compares every row with it.
const DESCRIBED: &str = "https://github.com/getmoto/moto/tree/5.2.5/moto/ec2/resources";

const GPU: Family = Family {
    name: "",
    architecture: Architecture::X86,
    gpu: None,
    on_demand: &quotas::ON_DEMAND_G,
    spot: &quotas::SPOT_G,
    data: false,
    withdrawn: None,
    sizes: &[],
    source: DESCRIBED,
};
const P: Family = Family { on_demand: &quotas::ON_DEMAND_P, spot: &quotas::SPOT_P5, ..GPU };
const CPU: Family = Family { on_demand: &quotas::ON_DEMAND_STANDARD, spot: &quotas::SPOT_STANDARD, ..GPU };
const ARM: Family = Family { architecture: Architecture::Arm, data: true, ..CPU };

/// All families.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "g4dn",
        gpu: Some(("T4", 16_384)),
        sizes: &[
            ("xlarge", 4, 16_384, 1),
            ("2xlarge", 8, 32_768, 1),
            ("4xlarge", 16, 65_536, 1),
            ("8xlarge", 32, 131_072, 1),
            ("12xlarge", 48, 196_608, 4),
            ("16xlarge", 64, 262_144, 1),
        ],
        ..GPU
    },
    Family { name: "g5", gpu: Some(("A10G", 22_888)), sizes: G5, ..GPU },
    Family { name: "g6", gpu: Some(("L4", 22_888)), sizes: G5, ..GPU },
    Family {
        name: "g6e",
        gpu: Some(("L40S", 45_776)),
        sizes: &[
            ("xlarge", 4, 32_768, 1),
            ("2xlarge", 8, 65_536, 1),
            ("4xlarge", 16, 131_072, 1),
            ("8xlarge", 32, 262_144, 1),
            ("12xlarge", 48, 393_216, 4),
            ("16xlarge", 64, 524_288, 1),
            ("24xlarge", 96, 786_432, 4),
            ("48xlarge", 192, 1_572_864, 8),
        ],
        ..GPU
    },
    Family {
        name: "p3",
        gpu: Some(("V100", 16_384)),
        spot: &quotas::SPOT_P,
        // AWS's API no longer describes it, and no zone in moto's copy of AWS's offerings has it.
        withdrawn: Some("https://github.com/dstackai/gpuhunt/pull/233"),
        sizes: &[("2xlarge", 8, 62_464, 1), ("8xlarge", 32, 249_856, 4), ("16xlarge", 64, 499_712, 8)],
        // 2026-08-22.
        source: "https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/cloudprovider/aws/ec2_instance_types.go",
        ..P
    },
    Family {
        name: "p4d",
        gpu: Some(("A100", 40_960)),
        spot: &quotas::SPOT_P,
        sizes: &[("24xlarge", 96, 1_179_648, 8)],
        ..P
    },
    Family {
        name: "p4de",
        gpu: Some(("A100", 81_920)),
        spot: &quotas::SPOT_P,
        sizes: &[("24xlarge", 96, 1_179_648, 8)],
        ..P
    },
    Family {
        name: "p5",
        gpu: Some(("H100", 81_920)),
        sizes: &[("4xlarge", 16, 262_144, 1), ("48xlarge", 192, 2_097_152, 8)],
        ..P
    },
    Family { name: "p5e", gpu: Some(("H200", 144_384)), sizes: &[("48xlarge", 192, 2_097_152, 8)], ..P },
    Family { name: "p5en", gpu: Some(("H200", 144_384)), sizes: &[("48xlarge", 192, 2_097_152, 8)], ..P },
    Family { name: "t3", sizes: T, ..CPU },
    Family { name: "m6i", sizes: M, ..CPU },
    Family { name: "m7i", sizes: M, ..CPU },
    Family { name: "t4g", sizes: T, ..ARM },
    Family { name: "m6g", sizes: M, ..ARM },
    Family { name: "m7g", sizes: M, ..ARM },
    Family { name: "r6g", sizes: R, ..ARM },
    Family { name: "r7g", sizes: R, ..ARM },
];

/// <https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/ParameterGroups.Engine.html>, read 2026-11-23.
const CACHE_NODES: &[(&str, u64)] = &[
    ("t4g.micro", 536_870_912),
    ("t4g.small", 1_471_026_299),
    ("t4g.medium", 3_317_862_236),
    ("m6g.large", 6_854_542_746),
    ("m6g.xlarge", 13_891_921_715),
    ("m6g.2xlarge", 27_966_669_210),
    ("m7g.large", 6_854_542_746),
    ("m7g.xlarge", 13_891_921_715),
    ("m7g.2xlarge", 27_966_669_210),
    ("r7g.large", 14_037_181_030),
    ("r7g.xlarge", 28_261_849_702),
    ("r7g.2xlarge", 56_711_183_565),
];

const G5: &[(&str, u32, u32, u32)] = &[
    ("xlarge", 4, 16_384, 1),
    ("2xlarge", 8, 32_768, 1),
    ("4xlarge", 16, 65_536, 1),
    ("8xlarge", 32, 131_072, 1),
    ("12xlarge", 48, 196_608, 4),
    ("16xlarge", 64, 262_144, 1),
    ("24xlarge", 96, 393_216, 4),
    ("48xlarge", 192, 786_432, 8),
];

const T: &[(&str, u32, u32, u32)] = &[
    ("micro", 2, 1_024, 0),
    ("small", 2, 2_048, 0),
    ("medium", 2, 4_096, 0),
    ("large", 2, 8_192, 0),
    ("xlarge", 4, 16_384, 0),
    ("2xlarge", 8, 32_768, 0),
];

const M: &[(&str, u32, u32, u32)] = &[
    ("large", 2, 8_192, 0),
    ("xlarge", 4, 16_384, 0),
    ("2xlarge", 8, 32_768, 0),
    ("4xlarge", 16, 65_536, 0),
    ("8xlarge", 32, 131_072, 0),
    ("12xlarge", 48, 196_608, 0),
    ("16xlarge", 64, 262_144, 0),
];

const R: &[(&str, u32, u32, u32)] = &[
    ("large", 2, 16_384, 0),
    ("xlarge", 4, 32_768, 0),
    ("2xlarge", 8, 65_536, 0),
    ("4xlarge", 16, 131_072, 0),
    ("8xlarge", 32, 262_144, 0),
    ("12xlarge", 48, 393_216, 0),
    ("16xlarge", 64, 524_288, 0),
];

#[cfg(test)]
mod tests {
    use textnlp_provider::units::Cores;

    use super::super::tests::python;
    use super::*;

    #[test]
    fn machines_are_as_aws_describes_them() {
        let script = "
import json, os, gzip, moto
found = json.load(gzip.open(os.path.join(os.path.dirname(moto.__file__), 'ec2/resources/instance_types.json.gz')))
print(json.dumps({name: [row['VCpuInfo']['DefaultVCpus'], row['MemoryInfo']['SizeInMiB'],
    row['ProcessorInfo']['SupportedArchitectures'],
    [[gpu['Name'], gpu['Count'], gpu['MemoryInfo']['SizeInMiB']] for gpu in row.get('GpuInfo', {}).get('Gpus', [])],
    row['SupportedUsageClasses']] for name, row in found.items()}))";
        let Some(described) = python(script) else { return };
        for machine in all() {
            let Some(found) = described.get(machine.name()) else {
                assert!(machine.family.withdrawn.is_some(), "{} is not described", machine.name());
                continue;
            };
            let architecture = match machine.family.architecture {
                Architecture::X86 => "x86_64",
                Architecture::Arm => "arm64",
            };
            let gpus = machine.family.gpu.map(|(name, memory)| serde_json::json!([name, machine.gpus, memory]));
            let gpus: Vec<_> = gpus.into_iter().collect();
            let ours = serde_json::json!([machine.vcpus, machine.memory_mib, [architecture], gpus]);
            assert_eq!(ours.as_array().unwrap()[..], found.as_array().unwrap()[..4], "{}", machine.name());
            assert!(machine.family.withdrawn.is_none(), "{} is offered again", machine.name());
            for class in ["on-demand", "spot"] {
                assert!(found[4].as_array().unwrap().iter().any(|found| found == class), "{} {class}", machine.name());
            }
        }
    }

    #[test]
    fn endpoints_have_every_machine_with_gpus() {
        let known = aws_sdk_sagemaker::types::ProductionVariantInstanceType::values();
        for machine in gpus() {
            let name = format!("ml.{}", machine.name());
            assert!(known.contains(&name.as_str()), "{name}");
            assert_eq!(of_endpoint(&name).unwrap().name(), machine.name());
        }
        for name in ["ml.p3.2xlarge", "ml.m5.xlarge", "g5.xlarge", "ml.g5", ""] {
            assert!(of_endpoint(name).is_none(), "{name}");
        }
    }

    #[test]
    fn ami_types_exist() {
        let script = "
import json, botocore.loaders
model = botocore.loaders.Loader().load_service_model('eks', 'service-2')
print(json.dumps(model['shapes']['AMITypes']['enum']))";
        let Some(known) = python(script) else { return };
        for machine in all() {
            assert!(
                known.as_array().unwrap().iter().any(|known| known == machine.ami_type()),
                "{}",
                machine.ami_type()
            );
        }
    }

    #[test]
    fn candidates_are_no_smaller_than_the_required_machine() {
        for (size, required) in [
            (GpuSize::None, "m7i.xlarge"),
            (GpuSize::Small, "g4dn.xlarge"),
            (GpuSize::Medium, "g4dn.2xlarge"),
            (GpuSize::Large, "p3.2xlarge"),
            (GpuSize::Xlarge, "p4d.24xlarge"),
        ] {
            let found: Vec<_> = candidates(size).iter().map(|name| machine(name).unwrap()).collect();
            let first = found[0];
            assert_eq!(first.name(), required);
            for (at, other) in found.iter().enumerate() {
                let facts =
                    |machine: &Machine| [machine.gpus, machine.gpu_memory_mib(), machine.vcpus, machine.memory_mib];
                assert!(facts(other).iter().zip(facts(&first)).all(|(more, less)| *more >= less), "{}", other.name());
                assert!(found[..at].iter().all(|earlier| earlier.name() != other.name()), "{} twice", other.name());
                assert_eq!(other.family.architecture, first.family.architecture);
            }
            assert!(found.iter().any(|machine| machine.family.withdrawn.is_none()));
        }
    }

    fn of_name(name: &str) -> Machine {
        machine(name).unwrap()
    }

    #[test]
    fn nodes_grow_with_their_size() {
        for ((size, types), vcpus) in NODES.sizes.iter().zip([4, 8, 16, 32]) {
            for name in *types {
                let found = of_name(name);
                assert_eq!((found.vcpus, found.memory_mib, found.gpus), (vcpus, vcpus * 4096, 0), "{size} {name}");
                assert!(NODES.suffixes().contains(&name.replace('.', "-")), "{name} can be chosen by its name");
            }
        }
    }

    /// What nodes of EKS were seen to have for pods: CPU in thousandths of a core and memory in KiB, as far as it was shown, and where.
    const SEEN: &[(&str, Option<u32>, Option<u64>, &str)] = &[
        ("m6i.xlarge", None, Some(15_219_416), "Azure/AKS#1216, of a machine with 16 GiB"),
        ("t3.xlarge", Some(3920), None, "awslabs/amazon-eks-ami#387"),
    ];

    #[test]
    fn nodes_have_for_pods_what_was_seen() {
        for (name, cpu, kib, source) in SEEN {
            let node = of_name(name).node();
            let (room, most) = (NODES.room(&node), NODES.most(&node));
            let memory = kib.map_or(most.memory, |kib| Bytes(kib << 10));
            let seen = Capacity { cpu: cpu.map_or(most.cpu, Cores), memory };
            assert!(seen.holds(&room) && most.holds(&seen), "{name}: {room} / {seen} / {most}: {source}");
        }
    }

    #[test]
    fn nodes_have_as_many_pods_as_their_addresses_allow() {
        let pods = |name: &str| most_pods(&of_name(name).node());
        for (names, most) in [
            (&["m7i.xlarge", "m6i.xlarge", "m7i.2xlarge", "g5.xlarge", "g6e.2xlarge", "t3.xlarge"][..], 58),
            (&["m7i.large", "m6i.large", "g4dn.xlarge", "g4dn.2xlarge", "g4dn.4xlarge"], 29),
            (&["m7i.4xlarge", "m6i.8xlarge", "m7i.12xlarge", "g5.4xlarge", "g6.12xlarge", "g5.16xlarge"], 234),
            (&["m7i.16xlarge", "g5.12xlarge", "g6.48xlarge", "p4d.24xlarge"], 737),
            (&["p5.48xlarge", "p5e.48xlarge"], 100),
        ] {
            for name in names {
                assert_eq!(pods(name), most, "{name}");
            }
        }
    }

    #[test]
    fn a_machine_counts_against_the_quota_of_its_family() {
        for (name, on_demand, spot) in [
            ("g4dn.xlarge", "L-DB2E81BA", "L-3819A6DF"),
            ("g6e.48xlarge", "L-DB2E81BA", "L-3819A6DF"),
            ("p3.2xlarge", "L-417A185B", "L-7212CCBC"),
            ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
            ("p5en.48xlarge", "L-417A185B", "L-C4BD4855"),
            ("m7g.large", "L-1216C47A", "L-34B43A08"),
            ("t3.medium", "L-1216C47A", "L-34B43A08"),
        ] {
            let machine = machine(name).unwrap();
            assert_eq!(machine.quota(Market::OnDemand).code, on_demand, "{name}");
            assert_eq!(machine.quota(Market::Spot).code, spot, "{name}");
        }
    }

    #[test]
    fn unknown_types_are_not_guessed() {
        for name in ["", "g4dn", "g4dn.", "g4dn.large", "db.g4dn.xlarge", "x9.large"] {
            assert!(machine(name).is_none(), "{name}");
        }
        assert_eq!(database("db.m7g.large").map(|found| (found.vcpus, found.memory_mib)), Some((2, 8_192)));
        for class in ["m7g.large", "db.m7i.large", "db.p4d.24xlarge", "db."] {
            assert!(database(class).is_none(), "{class}");
        }
        assert!(cache("cache.m7g.16xlarge").is_none() && cache("m7g.large").is_none());
    }

    #[test]
    fn a_cache_keeps_memory_for_the_system() {
        for (name, _) in CACHE_NODES {
            let (machine, memory) = cache(&format!("cache.{name}")).unwrap();
            let whole = u64::from(machine.memory_mib) << 20;
            assert!(memory < whole && memory >= whole / 2, "{name}");
            assert_eq!(machine.family.architecture, Architecture::Arm);
        }
    }
}
