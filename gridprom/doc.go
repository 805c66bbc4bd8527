// Package gridprom gives Prometheus the metrics of a grid: those of the connections of a
// [grid.Manager], and what its handlers have served, by [NewCollector]; and the results and times of
// calls by handler, on both sides, by [NewInterceptor]. Each works without the other.
//
//	calls := gridprom.NewInterceptor()
//	m, err := grid.NewManager(ctx, grid.ManagerOptions{
//		// Local, Hosts, AuthFn, AuthToken ...
//		HandlerNames:      map[grid.HandlerID]string{1: "lock", 2: "walk"},
//		CallInterceptors:  []grid.CallInterceptor{calls},
//		ServeInterceptors: []grid.ServeInterceptor{calls},
//	})
//	if err != nil {
//		return err
//	}
//	prometheus.MustRegister(calls, gridprom.NewCollector(m))
//	http.Handle("/metrics", promhttp.Handler())
//
// README.md of this package lists all metrics. Their names begin with grid_connection_ and
// grid_handler_, and their units are seconds and bytes.
//
// # Cardinality
//
// The labels have few values: hosts of the cluster, names of handlers, and what is fixed here.
// Subroutes and the other sides of calls are no labels of the handlers' metrics. A connection has
// 32 series; a handler on one side, once it was called, has 35 with the default buckets, and one
// that is registered has 5 more at most.
//
// # Several managers
//
// The metrics do not tell which manager they are of: in most processes there is one, and Prometheus
// adds the labels of the process. Where there are more, each has a registerer with a label of its
// own:
//
//	reg := prometheus.WrapRegistererWith(prometheus.Labels{"local": m.HostName()}, prometheus.DefaultRegisterer)
//	reg.MustRegister(calls, gridprom.NewCollector(m))
//
// # Concurrency
//
// Everything here may be used concurrently. A scrape takes time in proportion to the streams that
// are open, see [grid.Connection.Stats].
package gridprom
