using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>The oracle must accept what is allowed and refuse what is not, or every green seed means nothing.</summary>
public sealed class VolumeModelTests
{
    private static VolumeModel Make() => new(new VolumeHead(1, Guid.Empty, "v", Units.VolumeBytesMin, 1));

    private static byte[] Image(VolumeModel volume, params (ulong Id, ulong First, int Count)[] parts)
    {
        var image = new byte[volume.Head.SizeBytes];
        foreach ((ulong id, ulong first, int count) in parts)
            VolumeModel.Fill(image.AsSpan((int)first * 512, count * 512), id, 1, first);
        return image;
    }

    private static string? Judge(VolumeModel volume, byte[] image, bool powerWasCut) =>
        volume.JudgeAfterRestart(image, powerWasCut, staleAllowed: false, null, settle: false, 100)?.Text;

    [Fact]
    public void An_acked_write_may_be_lost_by_a_power_cut_only_until_it_is_flushed()
    {
        VolumeModel volume = Make();
        ModelWrite write = volume.Begin(1, 8, 8, false, 1);
        volume.End(write, true, false, 2);
        Assert.Null(Judge(volume, Image(volume), powerWasCut: true));
        Assert.NotNull(Judge(volume, Image(volume), powerWasCut: false));
        volume.Flushed(3);
        Assert.NotNull(Judge(volume, Image(volume), powerWasCut: true));
        Assert.Null(Judge(volume, Image(volume, (1, 8, 8)), powerWasCut: true));
    }

    [Fact]
    public void A_write_in_flight_is_there_as_a_whole_or_not_at_all()
    {
        VolumeModel volume = Make();
        volume.Begin(1, 0, 16, false, 1);
        Assert.Null(Judge(volume, Image(volume), true));
        Assert.Null(Judge(volume, Image(volume, (1, 0, 16)), true));
        Assert.Contains("part", Judge(volume, Image(volume, (1, 0, 8)), true));
    }

    [Fact]
    public void Content_from_elsewhere_or_damaged_is_refused()
    {
        VolumeModel volume = Make();
        volume.Begin(1, 0, 16, false, 1);
        byte[] image = Image(volume, (1, 0, 16));
        image[700] ^= 1;
        Assert.Contains("damaged", Judge(volume, image, true));
        Assert.Contains("cannot be there", Judge(volume, Image(volume, (1, 32, 8)), true));
    }

    [Fact]
    public void A_read_never_goes_back_behind_a_finished_write()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, false, 2);
        ModelWrite second = volume.Begin(2, 0, 8, false, 3);
        byte[] old = Image(volume, (1, 0, 8)), fresh = Image(volume, (2, 0, 8));
        Assert.Null(volume.EndRead(0, old.AsSpan(0, 4096), 4));
        Assert.Null(volume.EndRead(0, fresh.AsSpan(0, 4096), 4));
        volume.End(second, true, false, 5);
        Assert.NotNull(volume.EndRead(0, old.AsSpan(0, 4096), 6));
        Assert.NotNull(volume.EndRead(0, new byte[4096], 6));
    }

    /// <summary>The shape of seeds 52 and 77: write 1 (blocks 1 to 3) is dropped by the power cut, but write 2 had merged
    /// the second half of block 3 and is kept.</summary>
    [Fact]
    public void A_dropped_write_may_show_in_a_block_that_a_later_one_merged()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 8, 24, false, 1), true, false, 2);
        volume.Begin(2, 8, 20, false, 3);
        Assert.Null(Judge(volume, Image(volume, (2, 8, 20), (1, 28, 4)), true));

        volume = Make();
        volume.End(volume.Begin(1, 8, 24, false, 1), true, false, 2);
        volume.Begin(2, 24, 4, false, 3);
        Assert.Null(Judge(volume, Image(volume, (2, 24, 4), (1, 28, 4)), true));
    }

    /// <summary>That is allowed only where the merged block itself shows the later write: a later request that is not there
    /// excuses nothing.</summary>
    [Fact]
    public void A_later_merge_that_is_not_there_excuses_no_torn_write()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 8, 24, false, 1), true, false, 2);
        volume.Begin(2, 24, 4, false, 3);
        Assert.Contains("only a part", Judge(volume, Image(volume, (1, 24, 8)), true));
        Assert.Contains("only a part", Judge(volume, Image(volume, (1, 8, 8), (2, 24, 4), (1, 28, 4)), true));
    }

    [Fact]
    public void A_block_is_as_one_change_left_it()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, true, 2);
        volume.Begin(2, 0, 4, false, 3);
        volume.Begin(3, 4, 4, false, 3);
        Assert.Null(Judge(volume, Image(volume, (1, 0, 8)), true));
        Assert.Null(Judge(volume, Image(volume, (2, 0, 4), (1, 4, 4)), true));
        Assert.Null(Judge(volume, Image(volume, (2, 0, 4), (3, 4, 4)), true));
        Assert.Contains("mixture", Judge(volume, Image(volume, (2, 0, 2), (1, 2, 6)), true));
    }

    [Fact]
    public void A_merge_holds_what_was_current_when_it_was_made()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, true, 2);
        volume.End(volume.Begin(2, 0, 4, false, 3), true, false, 4);
        volume.End(volume.Begin(3, 4, 2, false, 5), true, false, 6);
        Assert.Null(Judge(volume, Image(volume, (2, 0, 4), (3, 4, 2), (1, 6, 2)), true));
        // Write 3 merged after write 2 was over, so it cannot hold what was there before.
        Assert.Contains("mixture", Judge(volume, Image(volume, (1, 0, 4), (3, 4, 2), (1, 6, 2)), true));
        byte[] image = Image(volume, (2, 0, 4), (3, 4, 2), (1, 6, 2));
        Assert.Null(volume.EndRead(0, image.AsSpan(0, 4096), 7));
    }

    [Fact]
    public void A_read_gives_whole_blocks_too()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, true, 2);
        volume.Begin(2, 0, 8, false, 3);
        byte[] torn = Image(volume, (2, 0, 4), (1, 4, 4));
        Assert.Contains("mixture", volume.EndRead(0, torn.AsSpan(0, 4096), 4)?.Text);
        Assert.Null(volume.EndRead(0, torn.AsSpan(0, 2048), 4)); // half a block tells nothing
    }

    /// <summary>What a restart showed is where the next one begins, also where zeros were merged into a block.</summary>
    [Fact]
    public void A_settled_mixture_stays_allowed_and_nothing_else_does()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, false, 2);
        volume.End(volume.Begin(2, 2, 3, true, 3), true, false, 4);
        byte[] image = Image(volume, (1, 0, 2), (1, 5, 3));
        Assert.Null(volume.JudgeAfterRestart(image, true, false, null, settle: true, 5));
        Assert.Null(Judge(volume, image, true));
        Assert.NotNull(Judge(volume, Image(volume, (1, 0, 8)), true));
        volume.End(volume.Begin(3, 0, 2, false, 7), true, true, 8);
        Assert.Null(Judge(volume, Image(volume, (3, 0, 2), (1, 5, 3)), true));
        Assert.NotNull(Judge(volume, image, true));
    }
}
