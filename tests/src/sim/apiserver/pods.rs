//! What kube-apiserver does to pods and to no other kind.

use serde_json::{Map, Value, json};

use super::failure::{Cause, Failure};
use super::kinds::Kind;
use super::meta;

/// Fills in the defaults that kubelet and our programs read.
pub(super) fn default(pod: &mut Value) {
    let Some(Value::Object(spec)) = pod.get_mut("spec") else { return };
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
        ("serviceAccountName", json!("default")),
        ("serviceAccount", json!("default")),
        ("enableServiceLinks", json!(true)),
        ("priority", json!(0)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
    ] {
        spec.entry(key).or_insert(value);
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            default_container(container);
        }
    }
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let policy =
        if matches!(tag, None | Some("latest")) && !image.contains('@') { "Always" } else { "IfNotPresent" };
    for (key, value) in [
        ("imagePullPolicy", json!(policy)),
        ("resources", json!({})),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
    ] {
        container.entry(key).or_insert(value);
    }
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(requests) = requests {
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

/// What a new pod must say; enough to catch a test that sends nonsense.
pub(super) fn faults(pod: &Value) -> Vec<Cause> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let Some(containers) = containers.filter(|containers| !containers.is_empty()) else {
        return vec![Cause::required("spec.containers", "")];
    };
    let mut faults = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for field in ["name", "image"] {
            if container.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
                faults.push(Cause::required(format!("spec.containers[{index}].{field}"), ""));
            }
        }
    }
    faults
}

/// The status that a new pod gets, whatever its creator sent.
pub(super) fn initial_status(pod: &Value) -> Value {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let has = |container: &Value, which: &str, resource: &str| {
        container.get("resources").and_then(|resources| resources.get(which)?.get(resource)).is_some()
    };
    let all = |check: &dyn Fn(&Value) -> bool| containers.is_some_and(|list| list.iter().all(check));
    let guaranteed = all(&|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let at = |which: &str| container.pointer(&format!("/resources/{which}/{resource}"));
            at("limits").is_some() && at("limits") == at("requests")
        })
    });
    let best_effort = all(&|container| {
        !["cpu", "memory"]
            .iter()
            .any(|resource| has(container, "limits", resource) || has(container, "requests", resource))
    });
    let class = match (guaranteed, best_effort) {
        (true, _) => "Guaranteed",
        (_, true) => "BestEffort",
        _ => "Burstable",
    };
    json!({"phase": "Pending", "qosClass": class})
}

/// kube-apiserver keeps `podIP` and `podIPs` in step.
pub(super) fn complete_status(pod: &mut Value) {
    let Some(Value::Object(status)) = pod.get_mut("status") else { return };
    let first = status.get("podIP").and_then(Value::as_str).map(str::to_owned);
    match first {
        Some(ip) if !status.contains_key("podIPs") => {
            status.insert("podIPs".to_owned(), json!([{ "ip": ip }]));
        }
        None => {
            let listed = status.get("podIPs").and_then(|list| list.get(0)?.get("ip")).cloned();
            if let Some(ip) = listed {
                status.insert("podIP".to_owned(), ip);
            }
        }
        Some(_) => {}
    }
}

/// A running pod's spec is fixed, but for images, deadline, grace period and further tolerations.
pub(super) fn check_spec_change(kind: &Kind, old: &Value, new: &Value) -> Result<(), Failure> {
    let fixed = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        if let Value::Object(spec) = &mut spec {
            spec.remove("activeDeadlineSeconds");
            spec.remove("tolerations");
            for list in ["containers", "initContainers"] {
                let containers = spec.get_mut(list).and_then(Value::as_array_mut);
                for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                    container.remove("image");
                }
            }
        }
        spec
    };
    let tolerations =
        |pod: &Value| pod.pointer("/spec/tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let kept = tolerations(old).iter().all(|toleration| tolerations(new).contains(toleration));
    if fixed(old) == fixed(new) && kept {
        return Ok(());
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`, \
               `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` or `spec.tolerations` \
               (only additions to existing tolerations)";
    Err(Failure::invalid(kind, meta::text(new, "name"), &[Cause::forbidden("spec", why)]))
}

/// Seconds that a pod gets to end: none if nothing runs or ran out, else what was asked, else what its spec says.
pub(super) fn grace_period(pod: &Value, asked: Option<i64>) -> i64 {
    let scheduled =
        pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    let ended = matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
    if !scheduled || ended {
        return 0;
    }
    asked.or_else(|| pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64)).unwrap_or(30)
}

/// The pod as `POST pods/<name>/binding` leaves it.
pub(super) fn bind(pod: &Value, binding: &Value, now: &str) -> Result<Value, Failure> {
    let name = meta::text(pod, "name");
    if let Some(node) = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|node| !node.is_empty())
    {
        return Err(Failure::already_bound(name, node));
    }
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(Failure::bad_request("Binding \"\" is invalid: target.name: Required value"));
    }
    let mut bound = pod.clone();
    if let Some(Value::Object(annotations)) = meta::get(binding, "annotations")
        && let Some(metadata) = meta::map(&mut bound)
        && let Value::Object(own) = metadata.entry("annotations").or_insert_with(|| json!({}))
    {
        own.extend(annotations.clone());
    }
    if let Some(Value::Object(spec)) = bound.get_mut("spec") {
        spec.insert("nodeName".to_owned(), node.into());
    }
    if let Some(Value::Object(status)) = bound.get_mut("status") {
        let conditions = status.entry("conditions").or_insert_with(|| json!([]));
        if let Value::Array(conditions) = conditions {
            conditions
                .retain(|condition| condition.get("type").and_then(Value::as_str) != Some("PodScheduled"));
            conditions.push(json!({
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
            }));
        }
    }
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_depends_on_what_runs() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 7}, "status": {"phase": phase}});
        let table = [
            (pod("", "Pending"), None, 0),
            (pod("n", "Pending"), None, 7),
            (pod("n", "Running"), Some(3), 3),
            (pod("n", "Running"), Some(0), 0),
            (pod("n", "Succeeded"), Some(3), 0),
            (pod("n", "Failed"), None, 0),
        ];
        for (pod, asked, expected) in table {
            assert_eq!(grace_period(&pod, asked), expected, "{pod} {asked:?}");
        }
    }

    #[test]
    fn extended_resources_are_requested_as_limited() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a", "image": "x:1", "resources": {"limits": {"intel.com/x": "1"}}},
            {"name": "b", "image": "localhost:5000/y"},
        ]}});
        default(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["intel.com/x"], "1");
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["spec"]["containers"][1]["imagePullPolicy"], "Always");
        assert_eq!(initial_status(&pod)["qosClass"], "BestEffort");
    }
}
