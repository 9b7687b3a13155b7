//! The search for what a deployment left behind.

use serde_json::json;
use textnlp_provider::{Leftovers, Lineage, Provider, Recorded, Sweep};
use textnlp_sim::{Disruption, Fault, Rule};

use crate::iam::role;
use crate::kms::key;
use crate::{ACCOUNT, Bench, REGION, lineage, output, run, wanted};

async fn leftovers(bench: &Bench, lineage: Lineage, kept: &[Recorded]) -> Leftovers {
    bench.provider.leftovers(&Sweep { lineage, before: &[], kept }).await.unwrap().unwrap()
}

fn ids(found: &Leftovers) -> Vec<&str> {
    found.left.iter().map(|one| one.id.as_str()).collect()
}

#[test]
fn what_nobody_kept_is_listed_with_its_arn_and_stays() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let logs = json!({ "name": "/textnlp/left", "key": null, "retention_days": 30, "tags": {} });
        let logs = bed.make(&wanted("here/cluster/logs", "aws.log-group", &logs)).await?;
        // The tagging API shows no roles.
        let nodes = bed.make(&role("node-role", "ec2.amazonaws.com", &[])).await?;
        let kept = bed.make(&key()).await?;
        bench.simulator.advance(std::time::Duration::from_secs(60));

        let found = leftovers(&bench, lineage(), std::slice::from_ref(&kept)).await;
        let logs = output(&logs, "arn");
        let logs = logs.trim_end_matches(":*");
        assert_eq!(ids(&found).len(), 2, "{found:?}");
        assert!(ids(&found).iter().any(|id| id.trim_end_matches(":*") == logs), "{found:?}");
        assert!(ids(&found).contains(&output(&nodes, "arn").as_str()), "{found:?}");
        assert!(found.expected.is_empty(), "{found:?}");

        let found = leftovers(&bench, lineage(), &[]).await;
        assert!(ids(&found).contains(&output(&kept, "arn").as_str()), "{found:?}");
        assert!(bench.calls("DeleteLogGroup") + bench.calls("DeleteRole") == 0, "nothing is deleted");

        let other = leftovers(&bench, "00000000-0000-4000-8000-00000000beef".parse().unwrap(), &[]).await;
        assert_eq!((other.left.len(), other.expected.len()), (0, 0), "another deployment has nothing");
        Ok(())
    });
}

#[test]
fn what_the_tags_still_show_is_read_before_it_counts() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let recorded = bed.make(&key()).await?;
        bed.unmake(&key(), &recorded).await?;
        {
            let mut world = bench.simulator.world();
            let now = world.now();
            let tags = || vec![("textnlp-lineage".to_owned(), lineage().to_string())];
            // A subnet that is deleted, a snapshot that the end of a database took, and what no kind is for.
            for resource in [
                "ec2:{}:subnet/subnet-0123456789abcdef0",
                "rds:{}:snapshot:last",
                "ec2:{}:volume/vol-0123456789abcdef0",
            ] {
                let arn = format!("arn:aws:{}", resource.replace("{}", &format!("{REGION}:{ACCOUNT}")));
                world.tags.set(&arn, tags(), now);
            }
        }
        let found = leftovers(&bench, lineage(), &[]).await;
        assert_eq!(ids(&found), [format!("arn:aws:ec2:{REGION}:{ACCOUNT}:volume/vol-0123456789abcdef0")]);
        let why: Vec<&str> = found.expected.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(why, ["KMS deletes it at the end of its waiting period", "the last snapshot of a removed database"]);
        Ok(())
    });
}

#[test]
fn a_refused_search_is_an_error_a_refused_region_is_named_and_an_unreadable_object_is_listed() {
    let bench = Bench::new();
    run(async {
        let made = bench.bed().make(&key()).await?;
        bench.simulator.advance(std::time::Duration::from_secs(60));
        let denied = || Disruption::Refused(Fault::new("AccessDeniedException", "You are not authorized"));
        bench.simulator.faults().add(Rule::always("kms", "DescribeKey", denied()));
        let found = leftovers(&bench, lineage(), &[]).await;
        assert_eq!(ids(&found), [output(&made, "arn")]);
        assert!(found.left.iter().all(|one| one.what.contains("could not be read")), "{found:?}");
        let other = Rule { region: "us-east-1".to_owned(), ..Rule::always("tagging", "GetResources", denied()) };
        bench.simulator.faults().add(other);
        bench.simulator.faults().add(Rule::always("iam", "ListRoles", denied()));
        let found = leftovers(&bench, lineage(), &[]).await;
        let unsearched: Vec<&str> = found.unsearched.iter().map(|one| one.id.as_str()).collect();
        assert_eq!((ids(&found).len(), unsearched), (1, vec!["aws roles", "aws us-east-1"]), "{found:?}");
        assert_eq!(found.searched.iter().collect::<Vec<_>>(), [&format!("aws {REGION}")]);
        bench.simulator.faults().add(Rule::always("tagging", "GetResources", denied()));
        let sweep = Sweep { lineage: lineage(), before: &[], kept: &[] };
        let error = bench.provider.leftovers(&sweep).await.unwrap_err();
        assert_eq!(error.kind, textnlp_provider::ErrorKind::Denied);
        Ok(())
    });
}
