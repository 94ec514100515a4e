package testbed

// wireReturn puts the second l4fwd on the common switch, if there is to be one.
func (t *Topology) wireReturn() error {
	if !t.Options.Return {
		return nil
	}
	var err error
	if t.Return, err = NewNamespace("return"); err != nil {
		return err
	}
	addrs := append(prefixesOf(ServerNet, hostReturn), prefixesOf(ClientNet, hostReturn)...)
	t.ReturnDev, err = t.link(t.Return, "b0", "return", t.Options.Queues, addrs)
	return err
}
