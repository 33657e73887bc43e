using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Images: nobody changes them, by whatever way; everybody makes volumes from them.</summary>
public sealed class ImmutableImageTests : IAsyncLifetime
{
    private const ulong Size = 4 * Units.MiB;
    private const string Prefix = "iqn.2026-11.org.blockserver";
    private const string Read = "28000000000000000100", Write = "2A000000000000000100";

    private StreamWorld _world = null!;

    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    private int Port => _world.Daemon.Catalog.Portals[0].EndPoint.Port;

    public async ValueTask InitializeAsync()
    {
        _world = await StreamWorld.StartAsync("iscsi=127.0.0.1:0");
        await _world.CreateAsync("gold", Size);
        await _world.WriteAsync("gold", 0, StreamWorld.Pattern(1, 2 << 20));
        await _world.CutAsync("gold", 1);
    }

    public ValueTask DisposeAsync() => _world.DisposeAsync();

    [Fact]
    public async Task An_image_is_changed_by_nobody_and_stays_one()
    {
        using (var writer = new RawInitiator(Port, $"{Prefix}:gold"))
        {
            await RefusedAsync("volume-in-use", "create_image", "-v", "gold");
            Assert.False(_world.Volume("gold").IsImage);
            writer.TakeAttentions();
            Assert.Equal(0, writer.Send(Write, new byte[512]).Status); // it was not closed for good
        }

        await DetachedAsync("gold");
        byte[] content = await _world.ReadAsync("gold");
        await _world.CutAsync("gold", 2);
        byte[] increment = await _world.ExportAsync("gold", 2, 1);
        await DoneAsync("create_image", "-v", "gold");
        await DoneAsync("create_image", "-v", "gold"); // it is one
        for (int run = 0; run < 2; run++)
        {
            Assert.Contains("online, image", await DoneAsync("list_volume"), StringComparison.Ordinal);
            Assert.Matches("Image +yes", await DoneAsync("show_volume", "-v", "gold"));
            foreach (string[] change in new string[][]
            {
                ["resize_volume", "-v", "gold", "-s", "8m"], ["resize_volume", "-v", "gold", "-s", "3m"], ["rollback_snapshot", "-v", "gold", "-n", "s1"],
                ["export_volume", "-v", "gold", "--read-only=false"], ["export_volume", "-v", "gold", "--thick"],
            })
            {
                await RefusedAsync("volume-is-image", change);
            }

            Assert.Equal("volume-is-image", await _world.ImportAsync("gold", increment));
            using var reader = new RawInitiator(Port, $"{Prefix}:gold");
            reader.TakeAttentions();
            Assert.Equal(content[..512], reader.Send(Read, expected: 512).Data);
            Assert.Equal(0x2700, reader.Send(Write, new byte[512]).Code);
            Assert.Equal(0x2700, reader.Send("93080000000000000000000000080000").Code);
            Assert.Equal(content, await _world.ReadAsync("gold"));
            if (run == 0) await _world.RestartAsync();
        }

        DirectoryResult taken = await _world.Daemon.Directory.ChangeAsync("gold", new ChangeVolume(Image: false));
        Assert.Equal(("volume-is-image", "image"), (taken.Fault!.Code, taken.Fault.Field));
        await DetachedAsync("gold");
        await DoneAsync("rename_volume", "-v", "gold", "-n", "silver");
        await DoneAsync("unexport_volume", "-v", "silver", "--iscsi");
        await DoneAsync("delete_snapshot", "-v", "silver", "-n", "s2");
        await DoneAsync("export_image", "-v", "silver", "-n", "s1", "--format", "raw", "-o", _world.PathOf("raw"));
        await DoneAsync("delete_volume", "-v", "silver", "--snapshots");
    }

    [Fact]
    public async Task Who_was_let_in_before_is_held_off_by_the_device_itself()
    {
        VolumeRecord volume = _world.Volume("gold");
        Blockd.StoreHost host = _world.Host("gold");
        Blockd.SharedVolume shared = (await host.Thread.InvokeAsync(() => _world.Daemon.Volumes.OpenAsync(volume, host.Thread)))!;
        await DoneAsync("create_image", "-v", "gold");
        Assert.True(shared.Device.IsReadOnly);
        foreach (Func<ValueTask<IoStatus>> change in new Func<ValueTask<IoStatus>>[]
        {
            () => shared.Device.WriteAsync(0, new byte[4096], WriteFlags.None), () => shared.Device.TrimAsync(0, 4096, WriteFlags.None),
            () => shared.Device.WriteZeroesAsync(0, 4096, WriteFlags.None),
        })
        {
            Assert.Equal(IoStatus.ReadOnly, await host.Thread.InvokeAsync(change));
        }
    }

    [Fact]
    public async Task A_stream_becomes_an_image_only_when_it_is_whole()
    {
        byte[] full = await _world.ExportAsync("gold", 1);
        Assert.Equal("truncated-stream", await _world.ImportAsync("base", full[..(full.Length / 2)], "keep=true&image=true"));
        Assert.False(_world.Volume("base").IsImage);
        await _world.RestartAsync();
        string file = _world.PathOf("gold.stream");
        await File.WriteAllBytesAsync(file, full, Cancel);
        await DoneAsync("import_image", "-v", "base", "-i", file, "--resume");
        Assert.True(_world.Volume("base").IsImage);
        Assert.True(_world.Volume("base").Export.ReadOnly);
        Assert.Equal(await _world.ReadAsync("gold"), await _world.ReadAsync("base"));
        await _world.CutAsync("gold", 2);
        byte[] increment = await _world.ExportAsync("gold", 2, 1);
        Assert.Equal("volume-is-image", await _world.ImportAsync("base", increment));
        Assert.Equal("invalid-query", await _world.ImportAsync("gold", increment, "image=true"));
        await DoneAsync("import_image", "-v", "other", "-i", file, "--image");
        Assert.True(_world.Volume("other").IsImage);
        Assert.Null(await _world.ImportAsync("plain", full));
        Assert.False(_world.Volume("plain").IsImage);
    }

    [Fact]
    public async Task A_clone_of_an_image_is_written_and_holds_the_image()
    {
        await DoneAsync("create_image", "-v", "gold");
        await DoneAsync("clone_volume", "-v", "gold", "-c", "vm1");
        Assert.Equal((false, false), (_world.Volume("vm1").IsImage, _world.Volume("vm1").Export.ReadOnly));
        using (var writer = new RawInitiator(Port, $"{Prefix}:vm1"))
        {
            writer.TakeAttentions();
            Assert.Equal(0, writer.Send(Write, new byte[512]).Status);
        }

        byte[] expected = await _world.ReadAsync("gold");
        expected.AsSpan(0, 512).Clear();
        Assert.Equal(expected, await _world.ReadAsync("vm1"));
        await RefusedAsync("vm1 is a clone of 'gold@clone-vm1'", "delete_volume", "-v", "gold", "--snapshots");
    }

    [Fact]
    public async Task A_copy_is_attached_by_nobody_before_it_is_whole_and_outlives_its_image()
    {
        await DoneAsync("create_image", "-v", "gold");
        byte[] expected = await _world.ReadAsync("gold");
        // As if the daemon had died here: nobody goes on with it.
        VolumeRecord copy = (await _world.Daemon.Directory.CloneAsync("gold", new CloneVolume("vm1", Full: true))).Volume!;
        Assert.Contains("initializing", await DoneAsync("list_volume"), StringComparison.Ordinal);
        using (var early = new RawInitiator(Port, $"{Prefix}:vm1")) Assert.NotEqual(0, early.Status);
        Assert.Null(await _world.Host("vm1").Thread.InvokeAsync(() => _world.Daemon.Volumes.OpenAsync(copy, _world.Host("vm1").Thread)));
        foreach (string[] refused in new string[][]
        {
            ["clone_volume", "-v", "vm1", "-c", "x"], ["create_snapshot", "-v", "vm1", "-n", "x"], ["rename_volume", "-v", "vm1", "-n", "x"], ["create_image", "-v", "vm1"],
        })
        {
            await RefusedAsync("volume-initializing", refused);
        }

        await RefusedAsync("vm1 is still being populated", "delete_volume", "-v", "gold", "--snapshots");
        await _world.RestartAsync();
        await PopulatedAsync("vm1");
        await DoneAsync("create_volume", "-v", "vm2", "--from", "gold", "-s", "6m", "--description", "larger");
        await PopulatedAsync("vm2");
        await DoneAsync("create_volume", "-v", "vm3", "--from", "gold@s1");
        await PopulatedAsync("vm3");
        Assert.Equal(["s1"], await SnapshotsAsync("gold"));
        await DoneAsync("delete_snapshot", "-v", "gold", "-n", "s1");
        await DoneAsync("delete_volume", "-v", "gold");
        Assert.Equal(expected, await _world.ReadAsync("vm1"));
        byte[] larger = [.. expected, .. new byte[2 << 20]];
        Assert.Equal(larger, await _world.ReadAsync("vm2"));
        Assert.Equal(expected, await _world.ReadAsync("vm3"));
        foreach (string name in new[] { "vm1", "vm2", "vm3" })
        {
            Assert.Equal((false, false), (_world.Volume(name).IsImage, _world.Volume(name).Export.ReadOnly));
            using var writer = new RawInitiator(Port, $"{Prefix}:{name}");
            writer.TakeAttentions();
            Assert.Equal(0, writer.Send(Write, new byte[512]).Status);
        }
    }

    [Fact]
    public async Task A_copy_that_is_deleted_leaves_nothing_at_its_image()
    {
        await DoneAsync("create_image", "-v", "gold");
        Assert.Null((await _world.Daemon.Directory.CloneAsync("gold", new CloneVolume("vm1", Full: true))).Fault);
        await DeleteAsync("vm1");
        await DoneAsync("create_volume", "-v", "vm1", "--from", "gold");
        await DeleteAsync("vm1");
        while ((await SnapshotsAsync("gold")).Length > 1) await Task.Delay(20, Cancel);
        await RefusedAsync("--disk", "create_volume", "-v", "vm1", "--from", "gold", "--disk", "store-0");
        await RefusedAsync("no-such-volume", "create_volume", "-v", "vm1", "--from", "none");
        await RefusedAsync("invalid-size", "create_volume", "-v", "vm1", "--from", "gold", "-s", "1m");
    }

    private async Task<string[]> SnapshotsAsync(string name) => [.. (await _world.SnapshotsAsync(name)).Select(s => s.Name)];

    /// <summary>Until the volume can be attached, and what was cut for it is gone.</summary>
    private async Task PopulatedAsync(string name)
    {
        while (_world.Volume(name).IsPopulating) await Task.Delay(20, Cancel);
        while ((await SnapshotsAsync("gold")).Contains("copy-" + name)) await Task.Delay(20, Cancel);
    }

    /// <summary>Deletes a volume that a copy comes into; when it is whole between the look and the deletion, looks again.</summary>
    private async Task DeleteAsync(string name)
    {
        string error;
        int code;
        do (code, _, error) = await RunAsync(["delete_volume", "-v", name]);
        while (error.Contains("revision-differs", StringComparison.Ordinal));
        Assert.True(code == 0, error);
    }

    private async Task DetachedAsync(string name)
    {
        while (_world.Daemon.Sessions.CountOf(_world.Volume(name).Id) > 0) await Task.Delay(10, Cancel);
    }

    private Task<(int Code, string Out, string Error)> RunAsync(string[] args) =>
        ApiPfcli.RunAsync(_world.Url, _world.Daemon.TokenPath, ["--yes", .. args], Cancel);

    private async Task<string> DoneAsync(params string[] args)
    {
        (int code, string text, string error) = await RunAsync(args);
        Assert.True(code == 0, error);
        return text;
    }

    private async Task RefusedAsync(string words, params string[] args)
    {
        (int code, _, string error) = await RunAsync(args);
        Assert.NotEqual(0, code);
        Assert.Contains(words, error, StringComparison.Ordinal);
    }
}
