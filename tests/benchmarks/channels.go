// What channels.py measures, in Go: prints seconds for one operation (or bytes) as JSON.
//
//	go run tests/benchmarks/channels.go [scale]
package main

import (
	"encoding/json"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

func since(begin time.Time, n int) float64 {
	return time.Since(begin).Seconds() / float64(n)
}

func pair(n int) float64 {
	c := make(chan int, 128)
	begin := time.Now()
	for i := 0; i < n; i++ {
		c <- 1
		<-c
	}
	return since(begin, n)
}

func flow(capacity, sides, n int) float64 {
	c := make(chan int, capacity)
	var all sync.WaitGroup
	all.Add(2 * sides)
	begin := time.Now()
	for side := 0; side < sides; side++ {
		go func() {
			for i := 0; i < n; i++ {
				c <- 1
			}
			all.Done()
		}()
		go func() {
			for i := 0; i < n; i++ {
				<-c
			}
			all.Done()
		}()
	}
	all.Wait()
	return since(begin, n*sides)
}

func trip(n int) float64 {
	there, back := make(chan int), make(chan int)
	go func() {
		for i := 0; i < n; i++ {
			back <- <-there
		}
	}()
	begin := time.Now()
	for i := 0; i < n; i++ {
		there <- 1
		<-back
	}
	return since(begin, n)
}

func makeAll(cases, capacity int) []chan int {
	c := make([]chan int, cases)
	for i := range c {
		c[i] = make(chan int, capacity)
	}
	return c
}

func selectAlone(receive func([]chan int), cases, n int) float64 {
	c := makeAll(cases, 16)
	begin := time.Now()
	for i := 0; i < n; i++ {
		c[i%cases] <- 1
		receive(c)
	}
	return since(begin, n)
}

func selectParked(receive func([]chan int), cases, n int) float64 {
	c := makeAll(cases, 0)
	begin := time.Now()
	go func() {
		for i := 0; i < n; i++ {
			c[i%cases] <- 1
		}
	}()
	for i := 0; i < n; i++ {
		receive(c)
	}
	return since(begin, n)
}

func wake(waiters int, byClose bool) float64 {
	c := make(chan int)
	var ready, all sync.WaitGroup
	ready.Add(waiters)
	all.Add(waiters)
	for i := 0; i < waiters; i++ {
		go func() {
			ready.Done()
			<-c
			all.Done()
		}()
	}
	ready.Wait()
	time.Sleep(5 * time.Millisecond)
	begin := time.Now()
	if byClose {
		close(c)
	} else {
		for i := 0; i < waiters; i++ {
			c <- 1
		}
	}
	all.Wait()
	return since(begin, 1)
}

func bytes(n int) float64 {
	kept := make([]chan int, n)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range kept {
		kept[i] = make(chan int)
	}
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
}

func main() {
	scale := 1.0
	if len(os.Args) > 1 {
		scale, _ = strconv.ParseFloat(os.Args[1], 64)
	}
	n := func(count int) int { return int(float64(count) * scale) }
	json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"pair":      pair(n(200000)),
		"cap0":      flow(0, 1, n(50000)),
		"cap1":      flow(1, 1, n(50000)),
		"cap128":    flow(128, 1, n(200000)),
		"4to4":      flow(128, 4, n(50000)),
		"trip":      trip(n(50000)),
		"select2":   selectAlone(select2, 2, n(100000)),
		"select10":  selectAlone(select10, 10, n(50000)),
		"select100": selectAlone(select100, 100, n(10000)),
		"parked2":   selectParked(select2, 2, n(30000)),
		"parked10":  selectParked(select10, 10, n(20000)),
		"parked100": selectParked(select100, 100, n(3000)),
		"wake":      wake(100, false),
		"close":     wake(100, true),
		"bytes":     bytes(10000),
	})
}

// The cases of a select are written out in Go; reflect.Select takes a slice, and allocates on every call.

func select2(c []chan int) {
	select {
	case <-c[0]:
	case <-c[1]:
	}
}

func select10(c []chan int) {
	select {
	case <-c[0]:
	case <-c[1]:
	case <-c[2]:
	case <-c[3]:
	case <-c[4]:
	case <-c[5]:
	case <-c[6]:
	case <-c[7]:
	case <-c[8]:
	case <-c[9]:
	}
}

func select100(c []chan int) {
	select {
	case <-c[0]:
	case <-c[1]:
	case <-c[2]:
	case <-c[3]:
	case <-c[4]:
	case <-c[5]:
	case <-c[6]:
	case <-c[7]:
	case <-c[8]:
	case <-c[9]:
	case <-c[10]:
	case <-c[11]:
	case <-c[12]:
	case <-c[13]:
	case <-c[14]:
	case <-c[15]:
	case <-c[16]:
	case <-c[17]:
	case <-c[18]:
	case <-c[19]:
	case <-c[20]:
	case <-c[21]:
	case <-c[22]:
	case <-c[23]:
	case <-c[24]:
	case <-c[25]:
	case <-c[26]:
	case <-c[27]:
	case <-c[28]:
	case <-c[29]:
	case <-c[30]:
	case <-c[31]:
	case <-c[32]:
	case <-c[33]:
	case <-c[34]:
	case <-c[35]:
	case <-c[36]:
	case <-c[37]:
	case <-c[38]:
	case <-c[39]:
	case <-c[40]:
	case <-c[41]:
	case <-c[42]:
	case <-c[43]:
	case <-c[44]:
	case <-c[45]:
	case <-c[46]:
	case <-c[47]:
	case <-c[48]:
	case <-c[49]:
	case <-c[50]:
	case <-c[51]:
	case <-c[52]:
	case <-c[53]:
	case <-c[54]:
	case <-c[55]:
	case <-c[56]:
	case <-c[57]:
	case <-c[58]:
	case <-c[59]:
	case <-c[60]:
	case <-c[61]:
	case <-c[62]:
	case <-c[63]:
	case <-c[64]:
	case <-c[65]:
	case <-c[66]:
	case <-c[67]:
	case <-c[68]:
	case <-c[69]:
	case <-c[70]:
	case <-c[71]:
	case <-c[72]:
	case <-c[73]:
	case <-c[74]:
	case <-c[75]:
	case <-c[76]:
	case <-c[77]:
	case <-c[78]:
	case <-c[79]:
	case <-c[80]:
	case <-c[81]:
	case <-c[82]:
	case <-c[83]:
	case <-c[84]:
	case <-c[85]:
	case <-c[86]:
	case <-c[87]:
	case <-c[88]:
	case <-c[89]:
	case <-c[90]:
	case <-c[91]:
	case <-c[92]:
	case <-c[93]:
	case <-c[94]:
	case <-c[95]:
	case <-c[96]:
	case <-c[97]:
	case <-c[98]:
	case <-c[99]:
	}
}
