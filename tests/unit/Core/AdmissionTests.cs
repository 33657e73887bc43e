using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

/// <summary>The doors of volumes on a simulated clock: what they let in is counted, never timed.</summary>
public sealed class AdmissionTests
{
    private const ulong Second = 1_000_000_000;

    [Theory]
    [InlineData(1, 4096, 100, 0)]
    [InlineData(1, 4096, 10_000, 0)]
    [InlineData(32, 4096, 10_000, 0)]
    [InlineData(128, 131072, 500, 0)]
    [InlineData(32, 4096, 0, 10 << 20)]
    [InlineData(16, 131072, 0, 10 << 20)]
    [InlineData(4, 33554432, 0, 64 << 20)]
    [InlineData(32, 512, 300_000, 0)]
    [InlineData(32, 512, 100_000, 1 << 20)]
    public void Ten_seconds_of_a_limit_are_what_it_says(int depth, int bytes, int iops, int bytesPerSecond)
    {
        var loop = new SimLoop(1);
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits((ulong)iops, (ulong)bytesPerSecond));
        var client = new Client(loop, door, depth, (ulong)bytes, deviceNanos: 20_000);
        RunFor(loop, 10 * Second);
        double allowed = Math.Min(iops == 0 ? double.MaxValue : iops, bytesPerSecond == 0 ? double.MaxValue : (double)bytesPerSecond / bytes) * 10;
        InRange(client.Done, allowed * 0.95, (allowed * 1.05) + 1);
        Assert.Equal(client.Done, (double)client.Started - door.Inside);
        Assert.Equal(depth, door.Inside + door.Waiting);
    }

    [Fact]
    public void What_was_not_asked_for_is_saved_up_to_the_burst_and_no_more()
    {
        var loop = new SimLoop(2);
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits(Iops: 100, BurstSeconds: 5));
        RunFor(loop, 60 * Second);
        var client = new Client(loop, door, 64, 4096, deviceNanos: 1000);
        RunFor(loop, Second / 100);
        InRange(client.Started, 500, 503);
        RunFor(loop, Second);
        InRange(client.Started, 600, 604);
    }

    [Fact]
    public void New_limits_hold_at_once_for_who_waits()
    {
        var loop = new SimLoop(3);
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits(Iops: 1));
        var client = new Client(loop, door, 8, 4096, deviceNanos: 1000);
        RunFor(loop, Second);
        InRange(client.Started, 1, 3);
        door.SetLimits(new QosLimits(Iops: 1000));
        ulong before = client.Started;
        RunFor(loop, 2 * Second);
        InRange(client.Started - before, 1950, 2110);
        Assert.True(door.Waiting > 0);
        door.SetLimits(null);
        Assert.Equal(0, door.Waiting);
        Assert.Equal(QosLimits.None, door.Limits);
    }

    [Fact]
    public void Who_waits_waits_in_order_and_can_be_withdrawn()
    {
        var loop = new SimLoop(4);
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits(Iops: 10));
        var order = new List<int>();
        AdmissionWaiter[] waiters = [.. Enumerable.Range(0, 20).Select(i => new AdmissionWaiter(() => order.Add(i)))];
        int atOnce = waiters.Count(w => door.Enter(w, 0));
        AdmissionWaiter[] waiting = [.. waiters.Where(w => w.IsWaiting)];
        Assert.Equal(waiters.Length - atOnce, door.Waiting);
        door.Withdraw(waiting[0]);
        door.Withdraw(waiting[5]);
        door.Withdraw(waiting[5]); // twice does nothing
        RunFor(loop, 10 * Second);
        Assert.Equal(Enumerable.Range(atOnce, waiters.Length - atOnce).Where(i => waiters[i] != waiting[0] && waiters[i] != waiting[5]), order);
        Assert.Equal(0, door.Waiting);
        Assert.Equal((ulong)order.Count, door.Throttled);
        Assert.True(door.ThrottledNanos > Second);
    }

    [Fact]
    public void Volumes_of_a_tenant_share_its_limit_in_equal_parts()
    {
        var loop = new SimLoop(5);
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 3000));
        Client[] clients = [.. Enumerable.Range(0, 3).Select(i => Client.Of(loop, tenant, 1 + 20 * i))];
        RunFor(loop, 10 * Second);
        double sum = clients.Sum(c => (double)c.Started);
        InRange(sum, 30_000 * 0.95, 30_000 * 1.05);
        foreach (Client client in clients) InRange(client.Started, 8_500, 11_500);
    }

    [Fact]
    public void Loops_on_which_somebody_waits_share_a_tenants_limit_in_equal_parts()
    {
        var one = new SimLoop(6);
        var two = new SimLoop(7);
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 2000));
        Client first = Client.Of(one, tenant, 64), second = Client.Of(two, tenant, 4);
        for (int i = 0; i < 10_000; i++)
        {
            RunFor(one, Second / 1000); // one always comes first
            RunFor(two, Second / 1000);
        }

        InRange(first.Started + second.Started, 20_000 * 0.95, 20_000 * 1.05);
        InRange(first.Started, 9_000, 11_000);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Doors_of_a_volume_on_two_loops_share_its_limit_in_equal_parts(bool hasTenant)
    {
        var one = new SimLoop(16);
        var two = new SimLoop(17);
        var limiter = new SharedLimiter();
        VolumeAdmission first = new(one, new DiskShare(), limiter), second = new(two, new DiskShare(), limiter);
        first.SetLimits(new QosLimits(Iops: 2000));
        Assert.Equal(2000UL, second.Limits.Iops);
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 3000));
        if (hasTenant)
        {
            first.SetTenant(tenant);
            second.SetTenant(tenant);
        }

        // Of the tenant's other volume on the first loop there is what the two leave.
        Client[] clients = [new(one, first, 64, 4096, deviceNanos: 50_000), new(two, second, 4, 4096, deviceNanos: 50_000), Client.Of(one, tenant, 16)];
        for (int i = 0; i < 10_000; i++)
        {
            RunFor(one, Second / 1000); // one always comes first
            RunFor(two, Second / 1000);
        }

        InRange(clients[0].Started + clients[1].Started, (hasTenant ? 15_000 : 20_000) * 0.95, 20_000 * 1.05);
        InRange(clients[0].Started, hasTenant ? 5_000 : 9_000, 11_000);
        InRange(clients[1].Started, hasTenant ? 5_000 : 9_000, 11_000);
        double all = clients[2].Started + (hasTenant ? clients[0].Started + clients[1].Started : 0);
        InRange(all, 30_000 * 0.95, 30_000 * 1.05);
        first.SetLimits(null);
        first.SetTenant(null);
        second.SetTenant(null);
        RunFor(two, Second / 1000); // it is told by a message
        Assert.Equal((0, 0), (first.Waiting, second.Waiting));
    }

    [Fact]
    public void A_volume_that_moves_has_its_part_of_the_disk_where_it_is()
    {
        var loop = new SimLoop(18);
        DiskShare before = new(), after = new();
        VolumeAdmission volume = new(loop, before), neighbour = new(loop, after);
        var client = new Client(loop, volume, 8, 131072, deviceNanos: Second / 1000);
        var other = new Client(loop, neighbour, 1, 4096, deviceNanos: Second / 1000);
        RunFor(loop, Second);
        Assert.Equal((8, 0), (volume.Inside, volume.Waiting));
        volume.SetDisk(after);
        RunFor(loop, Second);
        Assert.Equal((1, 7), (volume.Inside, volume.Waiting));
        Assert.True(volume.HasNeighbours && neighbour.HasNeighbours);
        volume.SetDisk(new DiskShare());
        Assert.Equal((8, 0), (volume.Inside, volume.Waiting));
        client.IsStopped = other.IsStopped = true;
        loop.RunToQuiescence();
        Assert.Equal((0, 0), (volume.Inside, volume.Waiting));
    }

    [Fact]
    public void A_volumes_own_limit_holds_within_its_tenants()
    {
        var loop = new SimLoop(8);
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 1000));
        Client small = Client.Of(loop, tenant, 16), large = Client.Of(loop, tenant, 16);
        small.Door.SetLimits(new QosLimits(Iops: 100));
        RunFor(loop, 10 * Second);
        InRange(small.Started, 950, 1070);
        InRange(small.Started + large.Started, 9_500, 10_500);
        small.Door.SetTenant(null);
        large.Door.SetTenant(null);
        Assert.Equal(0, large.Door.Waiting);
    }

    [Fact]
    public void Parallel_loops_take_no_more_than_a_tenant_has()
    {
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 5000));
        var clocks = new Barrier(4);
        ulong[] taken = new ulong[4];
        Thread[] threads = [.. Enumerable.Range(0, 4).Select(t => new Thread(() =>
        {
            var loop = new SimLoop((ulong)(20 + t));
            Client client = Client.Of(loop, tenant, 32);
            for (int i = 0; i < 2000; i++)
            {
                clocks.SignalAndWait();
                RunFor(loop, Second / 1000);
            }

            taken[t] = client.Started;
        }))];
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        InRange(taken.Sum(t => (double)t), 10_000 * 0.95, (10_000 * 1.05) + 500); // and the burst that was saved up
    }

    [Fact]
    public void A_greedy_volume_leaves_a_quiet_one_the_disk()
    {
        ulong alone = QuietLatency(isGreedy: false, isFair: true), fair = QuietLatency(isGreedy: true, isFair: true);
        ulong unfair = QuietLatency(isGreedy: true, isFair: false);
        Assert.True(unfair > 20 * alone, $"{unfair} is nothing that had to be mended"); // behind 16 MiB
        Assert.True(fair <= 6 * alone, $"{fair} against {alone}"); // behind what one volume may have in flight
    }

    [Fact]
    public void A_volume_alone_has_the_whole_disk_and_gets_it_back_when_the_others_rest()
    {
        var loop = new SimLoop(10);
        var disk = new DiskShare();
        var greedy = new VolumeAdmission(loop, disk);
        _ = new Client(loop, greedy, 128, 131072, deviceNanos: Second / 100);
        RunFor(loop, Second);
        Assert.Equal((128, 0), (greedy.Inside, greedy.Waiting));
        var quiet = new VolumeAdmission(loop, disk);
        var other = new Client(loop, quiet, 1, 4096, deviceNanos: Second / 1000);
        RunFor(loop, Second);
        Assert.Equal(128, greedy.Inside + greedy.Waiting);
        InRange(greedy.Inside, 1, 2);
        other.IsStopped = true;
        RunFor(loop, Second);
        Assert.Equal((128, 0), (greedy.Inside, greedy.Waiting));
    }

    [Fact]
    public void A_volume_none_of_whose_requests_ends_gets_another_one_in_after_a_while()
    {
        var loop = new SimLoop(11);
        var disk = new DiskShare();
        var stuck = new VolumeAdmission(loop, disk);
        var busy = new Client(loop, new VolumeAdmission(loop, disk), 4, 4096, deviceNanos: Second / 1000);
        RunFor(loop, Second);
        int came = 0;
        for (int i = 0; i < 10; i++)
        {
            if (stuck.Enter(new AdmissionWaiter(() => came++), 1 << 20)) came++;
        }

        Assert.Equal(1, came);
        RunFor(loop, Second);
        InRange(came, 3, 8);
        Assert.True(busy.Done > 0);
    }

    [Theory]
    [InlineData(0)] // trims
    [InlineData(512)]
    [InlineData(4096)]
    public void Small_requests_and_trims_take_room_at_a_shared_disk_too(int bytes)
    {
        var loop = new SimLoop(13);
        var disk = new DiskShare();
        var greedy = new VolumeAdmission(loop, disk);
        var quiet = new Client(loop, new VolumeAdmission(loop, disk), 1, 4096, deviceNanos: Second / 1000);
        RunFor(loop, Second / 10);
        _ = new Client(loop, greedy, 128, (ulong)bytes, deviceNanos: Second / 100);
        RunFor(loop, Second + (Second / 300)); // not when some have just ended
        Assert.Equal((16, 112), (greedy.Inside, greedy.Waiting)); // half of 256 KiB by 8 KiB
        quiet.IsStopped = true;
        RunFor(loop, Second);
        Assert.Equal((128, 0), (greedy.Inside, greedy.Waiting));
    }

    [Fact]
    public void Who_waits_for_its_part_comes_after_what_the_others_have_ready_in_the_turn()
    {
        var loop = new SimLoop(14);
        var disk = new DiskShare();
        VolumeAdmission greedy = new(loop, disk), quiet = new(loop, disk);
        var order = new List<string>();
        Assert.True(quiet.Enter(new AdmissionWaiter(() => { }), 4096));
        Assert.True(greedy.Enter(new AdmissionWaiter(() => { }), 128 << 10));
        Assert.False(greedy.Enter(new AdmissionWaiter(() => order.Add("greedy")), 128 << 10));
        greedy.Exit(128 << 10);
        quiet.Exit(4096);
        Assert.True(quiet.Enter(new AdmissionWaiter(() => { }), 4096));
        order.Add("quiet");
        loop.RunToQuiescence();
        Assert.Equal(["quiet", "greedy"], order);
        Assert.Equal((1, 0), (greedy.Inside, greedy.Waiting));
    }

    [Fact]
    public void Two_greedy_volumes_of_small_and_large_requests_get_equal_parts_in_flight()
    {
        var loop = new SimLoop(15);
        var disk = new DiskShare();
        Client[] clients = [.. new (int Depth, ulong Bytes)[] { (64, 8192), (64, 65536) }.Select(
            c => new Client(loop, new VolumeAdmission(loop, disk), c.Depth, c.Bytes, deviceNanos: Second / 1000))];
        RunFor(loop, Second + (Second / 3000)); // not when some have just ended
        Assert.Equal((16, 2), (clients[0].Door.Inside, clients[1].Door.Inside));
        ulong[] before = [.. clients.Select(c => c.Started)];
        RunFor(loop, Second);
        ulong small = (clients[0].Started - before[0]) * 8192, large = (clients[1].Started - before[1]) * 65536;
        InRange((double)small / large, 0.9, 1.1);
    }

    [Fact]
    public void A_door_allocates_nothing()
    {
        if (!IsRelease) return; // state machines and checks of a Debug build do
        var loop = new SimLoop(12);
        var door = new VolumeAdmission(loop, new DiskShare());
        var tenant = new SharedLimiter();
        tenant.SetLimits(new QosLimits(Iops: 50));
        door.SetTenant(tenant);
        door.SetLimits(new QosLimits(Iops: 100));
        AdmissionWaiter[] waiters = [.. Enumerable.Range(0, 64).Select(_ => new AdmissionWaiter(() => door.Exit(4096)))];
        Round();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 100; i++) Round();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);

        void Round()
        {
            foreach (AdmissionWaiter waiter in waiters)
            {
                if (!waiter.IsWaiting && door.Enter(waiter, 4096)) door.Exit(4096);
            }

            foreach (AdmissionWaiter waiter in waiters) door.Withdraw(waiter);
        }
    }

    private static void InRange(double actual, double least, double most) => Assert.InRange(actual, least, most);

    private static bool IsRelease =>
#if DEBUG
        false;
#else
        true;
#endif

    /// <summary>Worst of a volume with one small request at a time, nanoseconds.</summary>
    private static ulong QuietLatency(bool isGreedy, bool isFair)
    {
        var loop = new SimLoop(9);
        DiskShare? share = isFair ? new DiskShare() : null;
        var disk = new SimDisk(loop);
        var quiet = new Client(loop, new VolumeAdmission(loop, share), 1, 4096, disk: disk);
        RunFor(loop, Second / 10);
        if (isGreedy) _ = new Client(loop, new VolumeAdmission(loop, share), 128, 131072, disk: disk);
        RunFor(loop, Second / 4); // the first 16 MiB were let in while nobody was known to be busy
        quiet.WorstNanos = 0;
        RunFor(loop, 2 * Second);
        Assert.True(quiet.Done > 100);
        return quiet.WorstNanos;
    }

    private static void RunFor(SimLoop loop, ulong nanos)
    {
        bool isOver = false;
        loop.Schedule(nanos, () => isOver = true);
        Check.That(loop.RunUntil(() => isOver));
    }

    /// <summary>Works off one request after the other: 100 us each and 1 ns a byte.</summary>
    private sealed class SimDisk(SimLoop loop)
    {
        private ulong _freeAt;

        public ulong Begin(ulong bytes)
        {
            _freeAt = Math.Max(_freeAt, loop.NowNanos) + 100_000 + bytes;
            return _freeAt - loop.NowNanos;
        }
    }

    /// <summary>Keeps so many requests under way.</summary>
    private sealed class Client
    {
        public Client(SimLoop loop, VolumeAdmission door, int depth, ulong bytes, ulong deviceNanos = 0, SimDisk? disk = null)
        {
            Door = door;
            for (int i = 0; i < depth; i++)
            {
                ulong began = 0;
                AdmissionWaiter? waiter = null;
                waiter = new AdmissionWaiter(Start);
                Ask();

                void Ask()
                {
                    began = loop.NowNanos;
                    if (!IsStopped && door.Enter(waiter!, bytes)) Start();
                }

                void Start()
                {
                    Started++;
                    loop.Schedule(disk?.Begin(bytes) ?? deviceNanos, End);
                }

                void End()
                {
                    Done++;
                    door.Exit(bytes);
                    WorstNanos = Math.Max(WorstNanos, loop.NowNanos - began);
                    Ask();
                }
            }
        }

        public VolumeAdmission Door { get; }

        public ulong Started { get; private set; }

        public ulong Done { get; private set; }

        public ulong WorstNanos { get; set; }

        public bool IsStopped { get; set; }

        public static Client Of(SimLoop loop, SharedLimiter tenant, int depth)
        {
            var door = new VolumeAdmission(loop);
            door.SetTenant(tenant);
            return new Client(loop, door, depth, 4096, deviceNanos: 50_000);
        }
    }
}
