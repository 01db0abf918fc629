//go:build programs

// Package kubernetes names the programs of Kubernetes that tests run against, so that go.mod and
// go.sum pin them. `cargo xtask kubernetes` builds them.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
)
