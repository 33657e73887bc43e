using System.Globalization;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Io;

public sealed class BackgroundThreadsTests
{
    [Fact]
    public async Task Every_thread_but_the_loops_runs_behind_them_and_so_do_those_that_a_loop_starts()
    {
        using LoopThread one = LoopFactory.Create("auto", "one"), two = LoopFactory.Create("auto", "two");
        int before = await NiceOfAsync(one), own = NiceHere();
        Assert.Equal(before, own);
        // The tests' own threads keep what is given to them here: as little as can be.
        var threads = new BackgroundThreads([one, two], 1);
        threads.Look();
        Assert.Equal((before, before), (await NiceOfAsync(one), await NiceOfAsync(two)));
        Assert.Equal(own + 1, NiceHere());

        using var seen = new ManualResetEventSlim();
        using var first = new SemaphoreSlim(0);
        int begun = -99, later = -99;
        Thread started = await one.InvokeAsync(() =>
        {
            var thread = new Thread(() =>
            {
                begun = NiceHere();
                first.Release();
                seen.Wait();
                later = NiceHere();
            });
            thread.Start();
            return new ValueTask<Thread>(thread);
        });
        await first.WaitAsync(TestContext.Current.CancellationToken);
        threads.Look();
        threads.Look(); // it is not put back further
        seen.Set();
        started.Join();
        Assert.Equal((before, before + 1), (begun, later));
        Assert.Null(threads.Refusal);
    }

    [Fact]
    public async Task The_kernels_workers_of_a_ring_are_left_alone()
    {
        using LoopThread loop = LoopFactory.Create("io_uring", "ring");
        string path = Path.Combine(Path.GetTempPath(), $"blockserver-{Guid.NewGuid():n}");
        DiskFile.Create(path, 1 << 20);
        DiskFile file = DiskFile.Open(loop.Loop, path);
        var workers = new Dictionary<string, int>();
        for (int i = 0; i < 100 && workers.Count == 0; i++)
        {
            await loop.InvokeAsync(() => file.WriteAsync(0, new byte[4096]));
            await loop.InvokeAsync(() => file.FlushAsync()); // a flush always goes to a worker
            foreach (string task in Directory.EnumerateDirectories("/proc/self/task")
                .Where(t => File.ReadAllText(t + "/comm").StartsWith($"iou-wrk-{loop.SystemId}", StringComparison.Ordinal)))
                workers[task] = NiceIn(task);
        }

        Assert.NotEmpty(workers);
        new BackgroundThreads([loop], 1).Look();
        foreach ((string task, int nice) in workers) Assert.Equal(nice, NiceIn(task));
        await loop.InvokeAsync(() =>
        {
            file.Close();
            return default;
        });
        File.Delete(path);
    }

    private static Task<int> NiceOfAsync(LoopThread loop) => loop.InvokeAsync(() => new ValueTask<int>(NiceHere()));

    /// <summary>The nice value of the calling thread, as the kernel shows it.</summary>
    private static int NiceHere() => NiceIn("/proc/thread-self");

    private static int NiceIn(string task) =>
        int.Parse(File.ReadAllText(task + "/stat").Split(") ")[^1].Split(' ')[16], CultureInfo.InvariantCulture);
}
