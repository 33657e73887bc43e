using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>The simulated disk itself: it must be as bad as promised, and not worse.</summary>
public sealed class SimDiskTests
{
    private static byte[] Page(byte value)
    {
        var page = new byte[Units.BlockBytes];
        Array.Fill(page, value);
        return page;
    }

    [Fact]
    public void Flushed_writes_survive_a_power_cut_and_unflushed_ones_come_old_new_or_torn()
    {
        bool isOld = false, isNew = false, isTorn = false;
        for (ulong seed = 1; seed <= 200; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 1 << 20, seed);
            Assert.Equal(IoStatus.Ok, loop.Run(disk.WriteAsync(0, Page(1))));
            Assert.Equal(IoStatus.Ok, loop.Run(disk.WriteAsync(4096, Page(1))));
            Assert.Equal(IoStatus.Ok, loop.Run(disk.FlushAsync()));
            Assert.Equal(IoStatus.Ok, loop.Run(disk.WriteAsync(4096, Page(2))));
            Assert.Equal(Page(2), disk.PageNow(1));
            disk.CutPower();
            Assert.Equal(Page(1), disk.PageNow(0));
            byte[] page = disk.PageNow(1);
            for (int at = 0; at < page.Length; at += Units.SectorBytes)
                Assert.True(page.AsSpan(at, Units.SectorBytes).IndexOfAnyExcept(page[at]) < 0 && page[at] is 1 or 2);
            isOld |= page.AsSpan().IndexOfAnyExcept((byte)1) < 0;
            isNew |= page.AsSpan().IndexOfAnyExcept((byte)2) < 0;
            isTorn |= page.Contains((byte)1) && page.Contains((byte)2);
        }

        Assert.True(isOld && isNew && isTorn);
    }

    [Fact]
    public void A_kill_keeps_answered_writes()
    {
        for (ulong seed = 1; seed <= 50; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 1 << 20, seed);
            Assert.Equal(IoStatus.Ok, loop.Run(disk.WriteAsync(0, Page(1))));
            _ = disk.WriteAsync(4096, Page(2)).AsTask();
            disk.Kill();
            Assert.Equal(Page(1), disk.PageNow(0));
            disk.Attach(new SimLoop(seed + 1));
        }
    }

    [Fact]
    public void A_flush_covers_only_writes_answered_before_it()
    {
        bool wasLost = false;
        for (ulong seed = 1; seed <= 100 && !wasLost; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 1 << 20, seed);
            Task<IoStatus> write = disk.WriteAsync(0, Page(1)).AsTask();
            Task<IoStatus> flush = disk.FlushAsync().AsTask();
            loop.RunUntil(() => write.IsCompleted && flush.IsCompleted);
            disk.CutPower();
            wasLost = disk.PageNow(0)[0] == 0;
        }

        Assert.True(wasLost);
    }

    [Fact]
    public void Overlapping_flushes_never_bring_an_older_page_back()
    {
        for (ulong seed = 1; seed <= 300; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 1 << 20, seed);
            loop.Run(disk.WriteAsync(0, Page(1)));
            Task<IoStatus> first = disk.FlushAsync().AsTask();
            Task<IoStatus> write = disk.WriteAsync(0, Page(2)).AsTask();
            loop.RunUntil(() => write.IsCompleted);
            Task<IoStatus> second = disk.FlushAsync().AsTask();
            loop.RunUntil(() => first.IsCompleted && second.IsCompleted);
            disk.CutPower();
            Assert.Equal(Page(2), disk.PageNow(0));
        }
    }

    /// <summary>Crash states are told apart by these names: one that stood for two disks would leave one of them untried.</summary>
    [Fact]
    public void Forks_of_one_name_are_equal_disks_and_other_disks_have_other_names()
    {
        var random = new SeededRandom(5);
        int equal = 0, others = 0;
        for (ulong seed = 1; seed <= 60; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 1 << 20, seed) { Faults = new SimDiskFaults { WriteError = 0.1, FlushError = 0.05, MisdirectedWrite = 0.1 } };
            var contents = new Dictionary<ulong, string>();
            var names = new Dictionary<string, ulong>();
            byte next = 1;
            for (int step = 0; step < 60; step++)
            {
                // Two pages, so that writes lie over each other; every content is written once.
                int pages = 1 + random.NextBelow(2);
                byte[] data = [.. Page(next), .. Page((byte)(next + 1))];
                if (random.NextChance(0.5)) _ = disk.WriteAsync((ulong)random.NextBelow(3) * 4096, data.AsMemory(0, pages * 4096)).AsTask();
                else if (random.NextChance(0.2)) _ = disk.FlushAsync().AsTask();
                next += 2;
                loop.RunUntil(() => false, random.NextBelow(3UL));
                if (random.NextChance(0.02)) disk.Kill();
                for (int fork = 0; fork < 4; fork++)
                {
                    byte[][] masks = [.. disk.Pending.Select(write => fork == 0 ? new byte[write.Pages.Count] : SimDisk.DrawMasks(random, write.Pages.Count))];
                    ulong name = disk.NameOfFork((write, page) => masks[write][page]);
                    string content = ContentOf(disk.ForkAfterPowerCut(new SimLoop(1), 1, (write, page) => masks[write][page]));
                    if (!contents.TryAdd(name, content))
                    {
                        equal++;
                        Assert.Equal(contents[name], content);
                    }

                    if (names.TryAdd(content, name)) others++;
                }
            }
        }

        Assert.True(equal > 100 && others > 1000, $"{equal} equal, {others} others");
    }

    private static string ContentOf(SimDisk disk)
    {
        var text = new System.Text.StringBuilder();
        for (ulong page = 0; page < disk.SizeBytes / Units.BlockBytes; page++)
        {
            byte[] content = disk.PageNow(page);
            if (!content.AsSpan().ContainsAnyExcept((byte)0)) continue;
            text.Append(page).Append(':');
            for (int at = 0; at < content.Length; at += Units.SectorBytes) text.Append(content[at]).Append(',');
        }

        return text.ToString();
    }

    [Fact]
    public void Drawn_faults_happen_and_are_counted()
    {
        var loop = new SimLoop(7);
        var disk = new SimDisk(loop, 1 << 20, 7)
        {
            Faults = new SimDiskFaults
            {
                WriteError = 0.1, NoSpace = 0.1, FlushError = 0.1, LatentReadError = 0.1, BitRot = 0.1, LostWrite = 0.1,
                MisdirectedWrite = 0.1, Slow = 0.1,
            },
        };
        var answers = new HashSet<IoStatus>();
        for (int i = 0; i < 400; i++)
        {
            answers.Add(loop.Run(disk.WriteAsync((ulong)(i % 256) * 4096, Page((byte)i))));
            answers.Add(loop.Run(disk.ReadAsync((ulong)(i % 200) * 4096, Page(0))));
            if (i % 10 == 0) answers.Add(loop.Run(disk.FlushAsync()));
        }

        Assert.Superset(new HashSet<IoStatus> { IoStatus.Ok, IoStatus.IoError, IoStatus.NoSpace }, answers);
        Assert.True(disk.DestructiveFaultCount > 50);
        Assert.True(disk.FaultCount > disk.DestructiveFaultCount);
        Assert.All(disk.Misuse, misuse => Assert.Equal("a flush after one had failed", misuse));
        foreach (DiskEvent what in new[] { DiskEvent.WriteError, DiskEvent.NoSpace, DiskEvent.FlushError, DiskEvent.LatentReadError, DiskEvent.BitRot, DiskEvent.LostWrite, DiskEvent.MisdirectedWrite, DiskEvent.Slow })
            Assert.True(disk.CountOf(what) > 0, what.ToString());
    }

    [Fact]
    public void Memory_changed_during_a_write_and_misalignment_are_reported()
    {
        var loop = new SimLoop(1);
        var disk = new SimDisk(loop, 1 << 20, 1);
        byte[] page = Page(1);
        Task<IoStatus> write = disk.WriteAsync(0, page).AsTask();
        page[5] = 2;
        loop.RunUntil(() => write.IsCompleted);
        Assert.Equal(IoStatus.IoError, loop.Run(disk.ReadAsync(512, page)));
        Assert.Equal(2, disk.Misuse.Count);
    }
}
