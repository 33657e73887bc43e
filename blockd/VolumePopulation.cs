using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>
/// Carries one population through: asks the store to copy what the volume shares and follows that, then has it written down
/// that the volume is whole. May be begun again from any moment at which the process ended. Lives on no loop; one use.
/// </summary>
internal sealed class VolumePopulation(VolumeDirectory directory, IImportWorld world, Func<TimeSpan, Task> delay, Action<double> progress)
{
    private static readonly TimeSpan s_lookEvery = TimeSpan.FromMilliseconds(100);

    // A deleted copy holds its base while its pages are dropped; longer than that, and the next copy or start sweeps.
    private const int SweepsMax = 600;

    /// <summary>Returns when the volume may be attached. Throws <see cref="IOException"/> with a sentence when that does not go on by
    /// itself.</summary>
    public async Task RunAsync(VolumeRecord volume)
    {
        while (true)
        {
            DirectoryResult result = await directory.PopulateAsync(volume.Id);
            if (result.Fault is { Code: "no-such-volume" })
            {
                await SweepAsync();
                throw new IOException("the volume was deleted");
            }

            if (result.Fault is { } fault) throw new IOException($"{fault.Detail}; it goes on when its disk serves, or by pfcli flatten_volume");
            if (!result.Volume!.IsPopulating) break;
            await CopyAsync(volume);
        }

        await world.RenewTargetsAsync();
        await SweepAsync();
    }

    /// <summary>Returns when the volume shares nothing any more, or is gone.</summary>
    private async Task CopyAsync(VolumeRecord volume)
    {
        while (true)
        {
            if (directory.Find(volume.Id) is null) return;
            IMoveSide? host = world.FindStore(volume.StoreId);
            if (host is null || await host.LayersAsync(volume.Id) is not { } layers)
            {
                if (directory.Find(volume.Id) is null) return;
                throw new IOException("its disk does not serve it; the rest follows when it does");
            }

            if (layers.Base is null && !layers.IsFlattening) return;
            if (!layers.IsFlattening)
                throw new IOException("a block could not be copied: the disk is full, or the block cannot be read (pfcli scrub_volume); mend that, then pfcli flatten_volume goes on");
            progress(await host.RunAsync(store => new ValueTask<double>(store.OwnPart(volume.Id))));
            await delay(s_lookEvery);
        }
    }

    private async Task SweepAsync()
    {
        for (int i = 0; i < SweepsMax && !await directory.SweepCopiesAsync(); i++) await delay(s_lookEvery);
    }
}
