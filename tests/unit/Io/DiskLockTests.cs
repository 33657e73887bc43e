using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Io;

/// <summary>A file that another process holds: after a kill it lets go a moment later.</summary>
public sealed class DiskLockTests
{
    [Fact]
    public async Task A_holder_that_lets_go_is_waited_for_and_one_that_does_not_is_named()
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllBytes(path, new byte[8192]);
            using LoopThread thread = LoopFactory.Create("auto", "lock");
            DiskFile first = DiskFile.Open(thread.Loop, path);
            IOException refused = Assert.Throws<IOException>(() => DiskFile.Open(thread.Loop, path));
            Assert.Contains("another process has it open exclusively", refused.Message, StringComparison.Ordinal);

            var leaving = new Thread(() =>
            {
                Thread.Sleep(300);
                thread.Post(first.Close);
            });
            leaving.Start();
            DiskFile second = DiskFile.Open(thread.Loop, path);
            Assert.Equal(8192UL, second.SizeBytes);
            leaving.Join();
            await thread.InvokeAsync(() =>
            {
                second.Close();
                return default;
            });
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Patience_ends_when_it_is_rewarded()
    {
        int asked = 0;
        Assert.True(FileLock.TryTake(() => ++asked == 3));
        Assert.Equal(3, asked);
    }
}
